"""Runs where `standardwebhooks` is: verifies the request on stdin (JSON: secret, headers, body) as a receiver would."""

from __future__ import annotations

import json
import sys

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

request = json.load(sys.stdin)
try:
    Webhook(request["secret"]).verify(request["body"].encode(), request["headers"])
except WebhookVerificationError as error:
    print(f"refused: {error}")
else:
    print("verified")
