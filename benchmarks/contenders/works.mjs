// The same works as in work.py, for the runtimes of JavaScript. A tool says how its kind of socket
// does each of the few things that they are put together from.

const SEND = 0, TAKE = 1, BOTH = 2, ECHO = 3, GREET = 4, HOLD = 5;
const SMALL = 64, MANY = 100;

function command(amount) {
  const word = new Uint8Array(8);
  new DataView(word.buffer).setBigUint64(0, BigInt(amount));
  return word;
}

// A clock may be too coarse for a small share of the work.
function since(tool, begun) {
  return Math.max(tool.now() - begun, 1e-3);
}

const works = {
  async receive(tool, { ports, tls, amount }) {
    const connection = await tool.open(ports[SEND], tls);
    tool.send(connection, command(1));
    await tool.take(connection, 1);
    const begun = tool.now();
    tool.send(connection, command(amount));
    await tool.take(connection, amount);
    const seconds = since(tool, begun);
    await tool.close(connection);
    return amount / seconds / 1e6;
  },

  async duplex(tool, { ports, tls, amount }) {
    const connection = await tool.open(ports[BOTH], tls);
    const begun = tool.now();
    tool.send(connection, command(amount));
    await Promise.all([
      tool.give(connection, amount, 65536),
      tool.take(connection, amount + 1),
    ]);
    const seconds = since(tool, begun);
    await tool.close(connection);
    return (2 * amount) / seconds / 1e6;
  },

  async round_trip(tool, { ports, tls, amount }) {
    const connection = await tool.open(ports[ECHO], tls);
    const message = new Uint8Array(SMALL);
    await tool.ping(connection, 10, message);
    const begun = tool.now();
    await tool.ping(connection, amount, message);
    const seconds = since(tool, begun);
    await tool.close(connection);
    return amount / seconds;
  },

  async round_trips(tool, { ports, tls, amount }) {
    const connections = [];
    for (let n = 0; n < MANY; n++) connections.push(await tool.open(ports[ECHO], tls));
    const message = new Uint8Array(SMALL);
    const all = (times) => Promise.all(connections.map((c) => tool.ping(c, times, message)));
    await all(1);
    const begun = tool.now();
    await all(amount);
    const seconds = since(tool, begun);
    for (const connection of connections) await tool.close(connection);
    return (MANY * amount) / seconds;
  },

  async connect(tool, { ports, tls, amount }) {
    const begun = tool.now();
    for (let n = 0; n < amount; n++) await tool.close(await tool.open(ports[HOLD], tls));
    return amount / since(tool, begun);
  },

  async connect_default(tool, { ports, amount }) {
    const begun = tool.now();
    for (let n = 0; n < amount; n++) {
      await tool.close(await tool.openWithoutContext(ports[HOLD]));
    }
    return amount / since(tool, begun);
  },

  async first_byte(tool, { ports, tls, amount }) {
    const begun = tool.now();
    for (let n = 0; n < amount; n++) {
      const connection = await tool.open(ports[GREET], tls);
      await tool.take(connection, 1);
      await tool.close(connection);
    }
    return amount / since(tool, begun);
  },
};

function sending(size) {
  return async (tool, { ports, tls, amount }) => {
    const connection = await tool.open(ports[TAKE], tls);
    const begun = tool.now();
    tool.send(connection, command(amount));
    await tool.give(connection, amount, size);
    await tool.take(connection, 1);
    const seconds = since(tool, begun);
    await tool.close(connection);
    return amount / seconds / 1e6;
  };
}

works.send_64k = sending(65536);
works.send_1m = sending(1 << 20);

export function run(tool, order) {
  return works[order.work](tool, order);
}
