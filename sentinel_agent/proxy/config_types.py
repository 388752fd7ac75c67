"""The kinds of values of the proxy's configuration, with their bounds."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Address = Annotated[str, Meta(pattern=r"^.+:\d{1,5}$", extra={"unit": "address"})]
Regex = Annotated[str, Meta(min_length=1, max_length=500, extra={"unit": "regex"})]
Token = Annotated[str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$")]
FieldName = Token
Text = Annotated[str, Meta(max_length=1000)]
Path_ = Annotated[str, Meta(pattern=r"^/", max_length=1000)]
Labels = Annotated[dict[str, str], Meta(max_length=20)]
Mark = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Percent = Annotated[float, Meta(ge=0, le=100, description="of the requests")]
