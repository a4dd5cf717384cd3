// connect() of the Workers runtime. Does the work that it is told in the body of a request.

import { connect } from "cloudflare:sockets";

import { run } from "works.mjs";

const HOST = "127.0.0.1";

async function opened(port, secureTransport) {
  const socket = connect({ hostname: HOST, port }, { secureTransport });
  await socket.opened;
  return {
    socket,
    reader: socket.readable.getReader({ mode: "byob" }),
    writer: socket.writable.getWriter(),
    buffer: new ArrayBuffer(1 << 18),
  };
}

const tool = {
  // It stands still but for input and output, with which each work begins and ends. There is no
  // clock for CPU time.
  now: () => Date.now() / 1000,
  open(port, secure) {
    return opened(port, secure ? "on" : "off");
  },
  openWithoutContext(port) {
    return opened(port, "on");
  },
  send(connection, data) {
    connection.writer.write(data);
  },
  async take(connection, amount) {
    while (amount > 0) {
      const size = Math.min(amount, connection.buffer.byteLength);
      const { value } = await connection.reader.read(new Uint8Array(connection.buffer, 0, size));
      amount -= value.byteLength;
      connection.buffer = value.buffer;
    }
  },
  async give(connection, amount, size) {
    for (let n = 0; n < amount / size; n++) await connection.writer.write(new Uint8Array(size));
  },
  async ping(connection, times, message) {
    for (let n = 0; n < times; n++) {
      connection.writer.write(message);
      await tool.take(connection, message.length);
    }
  },
  async close(connection) {
    await connection.socket.close();
  },
};

export default {
  async fetch(request) {
    return Response.json(await run(tool, await request.json()));
  },
};
