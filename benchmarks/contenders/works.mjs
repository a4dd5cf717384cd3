// The same works as in work.py, for the runtimes of JavaScript. A tool says how its kind of socket
// does each of the few things that they are put together from, and what time it is.

const SEND = 0, TAKE = 1, BOTH = 2, ECHO = 3, GREET = 4, HOLD = 5;
const SMALL = 64, BUSY = 10, MB = 1e6;

function command(amount) {
  const word = new Uint8Array(8);
  new DataView(word.buffer).setBigUint64(0, BigInt(amount));
  return word;
}

// Tells the cost of one operation since it was made, in microseconds.
function clock(tool) {
  const wall = tool.now(), cpu = tool.cpu?.();
  return (operations) => {
    const cost = { wall: ((tool.now() - wall) * 1e6) / operations };
    if (tool.cpu) cost.cpu = ((tool.cpu() - cpu) * 1e6) / operations;
    return cost;
  };
}

async function receive(tool, { ports, tls, amount }) {
  const connection = await tool.open(ports[SEND], tls);
  tool.send(connection, command(1));
  await tool.take(connection, 1);
  const cost = clock(tool);
  tool.send(connection, command(amount));
  await tool.take(connection, amount);
  const found = cost(amount / MB);
  await tool.close(connection);
  return found;
}

function sending(size) {
  return async (tool, { ports, tls, amount: most }) => {
    const amount = Math.max(1, Math.floor(most / size)) * size;
    const connection = await tool.open(ports[TAKE], tls);
    const cost = clock(tool);
    tool.send(connection, command(amount));
    await tool.give(connection, amount, size);
    await tool.take(connection, 1);
    const found = cost(amount / MB);
    await tool.close(connection);
    return found;
  };
}

async function duplex(tool, { ports, tls, amount: most }) {
  const amount = Math.max(1, Math.floor(most / 65536)) * 65536;
  const connection = await tool.open(ports[BOTH], tls);
  const cost = clock(tool);
  tool.send(connection, command(amount));
  await Promise.all([
    tool.give(connection, amount, 65536),
    tool.take(connection, amount + 1),
  ]);
  const found = cost((2 * amount) / MB);
  await tool.close(connection);
  return found;
}

function roundTrips(busy) {
  return async (tool, { ports, tls, amount, sockets }) => {
    const connections = [];
    for (let n = 0; n < sockets; n++) connections.push(await tool.open(ports[ECHO], tls));
    const used = connections.slice(0, busy);
    const message = new Uint8Array(SMALL);
    const all = (times) => Promise.all(used.map((c) => tool.ping(c, times, message)));
    await all(1);
    const cost = clock(tool);
    await all(amount);
    const found = cost(used.length * amount);
    for (const connection of connections) await tool.close(connection);
    return found;
  };
}

async function connect(tool, { ports, tls, amount }) {
  const cost = clock(tool);
  for (let n = 0; n < amount; n++) await tool.close(await tool.open(ports[HOLD], tls));
  return cost(amount);
}

async function connectDefault(tool, { ports, amount }) {
  const cost = clock(tool);
  for (let n = 0; n < amount; n++) await tool.close(await tool.openWithoutContext(ports[HOLD]));
  return cost(amount);
}

async function firstByte(tool, { ports, tls, amount }) {
  const cost = clock(tool);
  for (let n = 0; n < amount; n++) {
    const connection = await tool.open(ports[GREET], tls);
    await tool.take(connection, 1);
    await tool.close(connection);
  }
  return cost(amount);
}

const works = {
  busy: roundTrips(BUSY),
  connect,
  connect_default: connectDefault,
  duplex,
  first_byte: firstByte,
  receive,
  send: sending(65536),
  send_64k: sending(65536),
  send_1m: sending(1 << 20),
};

export function run(tool, order) {
  const name = order.row.replace(/^tls_/, "");
  return (name.startsWith("round_trip") ? roundTrips() : works[name])(tool, order);
}
