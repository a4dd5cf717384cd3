// Node's net and tls: node node.mjs AUTHORITY. Does the work that it is told on standard input, a
// line of JSON each.

import { once } from "node:events";
import { readFileSync } from "node:fs";
import net from "node:net";
import { createInterface } from "node:readline";
import tls from "node:tls";

import { run } from "./works.mjs";

const HOST = "127.0.0.1";
const secureContext = tls.createSecureContext({ ca: readFileSync(process.argv[2]) });

async function opened(socket, event) {
  socket.missing = 0;
  socket.on("data", (chunk) => {
    socket.missing -= chunk.length;
    if (socket.missing <= 0) socket.enough?.();
  });
  await once(socket, event);
  return socket;
}

const tool = {
  now: () => performance.now() / 1000,
  cpu() {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1e6;
  },
  open(port, secure) {
    return secure
      ? opened(tls.connect({ host: HOST, port, secureContext }), "secureConnect")
      : opened(net.connect({ host: HOST, port, noDelay: true }), "connect");
  },
  openWithoutContext(port) {
    return opened(tls.connect({ host: HOST, port }), "secureConnect");
  },
  send(socket, data) {
    socket.write(data);
  },
  take(socket, amount) {
    socket.missing += amount;
    return new Promise((resolve) => {
      socket.enough = () => {
        socket.enough = undefined;
        resolve();
      };
      if (socket.missing <= 0) socket.enough();
    });
  },
  async give(socket, amount, size) {
    const data = new Uint8Array(size);
    for (let n = 0; n < amount / size; n++) {
      if (!socket.write(data)) await once(socket, "drain");
    }
  },
  ping(socket, times, message) {
    return new Promise((resolve) => {
      socket.enough = () => {
        if (times-- === 0) {
          socket.enough = undefined;
          resolve();
          return;
        }
        socket.missing += message.length;
        socket.write(message);
      };
      socket.enough();
    });
  },
  async close(socket) {
    socket.destroy();
    await once(socket, "close");
  },
};

console.log("null"); // ready
for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await run(tool, JSON.parse(line))));
}
process.exit();
