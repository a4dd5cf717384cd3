// Does the same as half_close_server.py, which describes it.
'use strict';
const fs = require('fs');
const tls = require('tls');

const [chain, key] = process.argv.slice(2);
const megabyte = Buffer.alloc(1 << 20, 'x');
const options = {
  cert: fs.readFileSync(chain),
  key: fs.readFileSync(key),
  allowHalfOpen: true, // otherwise Node ends its side as soon as the client does
};
const server = tls.createServer(options, (connection) => {
  let count = 0;
  connection.write(megabyte);
  connection.on('data', (data) => { count += data.length; });
  connection.on('end', () => {
    connection.write(`received ${count} bytes`);
    connection.end(megabyte);
  });
  connection.on('error', (error) => console.log(error));
});
server.listen(0, '127.0.0.1', () => console.log('listening on', server.address().port));
