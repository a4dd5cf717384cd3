// Runs the client's steps of one scenario for each request, through cloudflare:sockets.
//
// The request has a line of JSON for each step, and the response a line for its outcome.
// ours.py does the same steps and reports the same outcomes.

import { connect } from "cloudflare:sockets";

const SHOWN = 64;

// Data in the form of a trace: Latin-1, or only the length if the data is long.
function told(chunks) {
  const length = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  if (length > SHOWN) return `${length} bytes`;
  return JSON.stringify(chunks.map((chunk) => String.fromCharCode(...chunk)).join(""));
}

class Client {
  constructor(socket, scenario) {
    this.socket = socket;
    this.scenario = scenario;
    this.begun = new Map();
  }

  // The one reader or writer of the stream. It is kept, so that later calls wait for earlier ones.
  lock(kind) {
    const { readable, writable } = this.socket;
    this[kind] ??= kind === "reader" ? readable.getReader() : writable.getWriter();
    return this[kind];
  }

  // Releases both locks; that of the reader only if no read waits, because that read would fail.
  release() {
    this.writer?.releaseLock();
    this.writer = undefined;
    if (!this.begun.has("read")) {
      this.reader?.releaseLock();
      this.reader = undefined;
    }
  }

  async read(count) {
    const reader = this.lock("reader");
    const chunks = [];
    let missing = count || 1;
    while (missing > 0) {
      const { done, value } = await reader.read();
      if (done) return chunks.length ? `${told(chunks)} then eof` : "eof";
      chunks.push(value);
      missing -= value.length;
    }
    return told(chunks);
  }

  async take(count) {
    this.release();
    const reader = this.socket.readable.getReader({ mode: "byob" });
    try {
      const { done, value } = await reader.read(new Uint8Array(count));
      return done ? "eof" : told([value]);
    } finally {
      reader.releaseLock();
    }
  }

  async write(data) {
    await this.lock("writer").write(data);
    return "ok";
  }

  perform(verb, rest) {
    const socket = this.socket;
    switch (verb) {
      case "read":
        return this.read(Number(rest));
      case "take":
        return this.take(Number(rest));
      case "write":
        return this.write(new TextEncoder().encode(rest));
      case "write-str":
        return this.write(rest);
      case "write-view":
        return this.write(new Uint16Array([0x6968]));
      case "flood":
        return this.write(new Uint8Array(Number(rest)));
      case "end":
        return this.lock("writer")
          .close()
          .then(() => "ok");
      case "abort":
        return this.lock("writer")
          .abort("enough")
          .then(() => "ok");
      case "cancel":
        return this.lock("reader")
          .cancel("enough")
          .then(() => "ok");
      case "pipe": {
        const [target, ...names] = rest.split(" ");
        const into = target ? this.scenario[target] : this;
        this.release();
        into.release();
        const options = Object.fromEntries(names.map((name) => [name, true]));
        return socket.readable.pipeTo(into.socket.writable, options).then(() => "ok");
      }
      case "close":
        return socket.close().then(() => "ok");
      case "opened":
        return socket.opened.then(() => "ok");
      case "closed":
        return socket.closed.then(() => "ok");
      case "info":
        return socket.opened.then((info) => {
          const value = info[`${rest}Address`] ?? info[rest];
          return value == null ? "none" : value;
        });
      case "upgraded":
        return String(socket.upgraded);
      case "secure":
        return socket.secureTransport;
      default:
        throw new Error(`no such step: ${verb}`);
    }
  }
}

class Scenario {
  run({ verb, rest, which, mode, wait, address, options }) {
    if (verb === "connect") {
      this[which] = new Client(connect(address, options), this);
      return "ok";
    }
    if (verb === "startTls") {
      this.now.release();
      const socket = this.now.socket.startTls(options);
      this.old = this.now;
      this.now = new Client(socket, this);
      return "ok";
    }
    const client = this[which];
    const key = `${verb} ${rest}`.trim();
    let outcome = client.begun.get(key);
    if (outcome === undefined || mode === "begin") {
      outcome = client.perform(verb, rest);
      if (typeof outcome === "string") return outcome;
      outcome = outcome.catch((error) => ({ error: String(error) }));
    }
    client.begun.set(key, outcome);
    if (mode === "begin") return "begun";
    let timer;
    const late = new Promise((resolve) => {
      timer = setTimeout(() => resolve("pending"), wait * 1000);
    });
    return Promise.race([outcome, late]).then((value) => {
      clearTimeout(timer);
      if (value !== "pending") client.begun.delete(key);
      return value;
    });
  }

  async step(line) {
    let outcome;
    try {
      outcome = await this.run(JSON.parse(line));
    } catch (error) {
      return { outcome: "throws", detail: String(error) };
    }
    if (typeof outcome === "string") return { outcome };
    return { outcome: "error", detail: outcome.error };
  }
}

async function conduct(lines, answers) {
  const scenario = new Scenario();
  const encoder = new TextEncoder();
  let text = "";
  for await (const chunk of lines.pipeThrough(new TextDecoderStream())) {
    text += chunk;
    for (let end; (end = text.indexOf("\n")) >= 0; text = text.slice(end + 1)) {
      const answer = await scenario.step(text.slice(0, end));
      await answers.write(encoder.encode(`${JSON.stringify(answer)}\n`));
    }
  }
  await answers.close();
}

export default {
  async fetch(request, env, context) {
    const { readable, writable } = new IdentityTransformStream();
    context.waitUntil(conduct(request.body, writable.getWriter()));
    return new Response(readable);
  },
};
