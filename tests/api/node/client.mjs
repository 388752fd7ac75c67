// Make calls with the official Connect client: node client.mjs BASE DESCRIPTORS binary|json, calls as JSON on stdin, replies as JSON on stdout.

import { readFileSync } from "node:fs";
import { createFileRegistry, fromBinary, fromJson, toJson } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";

const [base, descriptors, encoding] = process.argv.slice(2);
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(descriptors)));
const service = registry.getService("querier.v1.QuerierService");
const transport = createConnectTransport({ baseUrl: base, httpVersion: "1.1", useBinaryFormat: encoding === "binary" });
const client = createClient(service, transport);
const replies = [];
for (const [name, request] of JSON.parse(readFileSync(0, "utf8"))) {
  const method = service.method[name[0].toLowerCase() + name.slice(1)];
  try {
    const reply = await client[method.localName](fromJson(method.input, request));
    replies.push(["ok", toJson(method.output, reply)]);
  } catch (error) {
    const found = ConnectError.from(error);
    replies.push([Code[found.code], found.rawMessage]);
  }
}
process.stdout.write(JSON.stringify(replies));
