// A service whose functions wait and compute in what is built into Node, and are called back from there, and say for how long: owners
// of stacks. Usage: node orders.js FIFO
'use strict';

const child = require('child_process');
const crypto = require('crypto');
const fs = require('fs');

const data = Buffer.alloc(1 << 20);
const text = JSON.stringify(Array.from({length: 300}, (_, n) => ({price: n * 7919 % 503, name: `order ${n}`})));
let sink = 0;

function seconds() { return Number(process.hrtime.bigint()) / 1e9; }

// Waits at a pipe.
function receive(from) {
  const begin = seconds();
  if (fs.readSync(from, Buffer.alloc(1)) === 0) throw new Error('the end');
  return seconds() - begin;
}

// Called by the sort.
function byPrice(one, other) { return one.price - other.price; }

function render() {
  const orders = JSON.parse(text);
  orders.sort(byPrice);
  sink += JSON.stringify(orders).length;
}

// All of it is in OpenSSL.
function digest() { sink += crypto.createHash('sha256').update(data).digest()[0]; }

function repeat(work, time) {
  const begin = process.cpuUsage();
  let used;
  do {
    work();
    const {user, system} = process.cpuUsage(begin);
    used = (user + system) / 1e6;
  } while (used < time);
  return used;
}

// Waits for the next step as Node waits for everything: that is no wait at a pipe.
async function step(name, facts) {
  fs.writeSync(1, JSON.stringify({step: name, pid: process.pid, facts}) + '\n');
  await new Promise((done) => process.stdin.once('data', done));
}

function receives() {
  const fifo = process.argv[2];
  if (!fs.existsSync(fifo)) child.execFileSync('mkfifo', [fifo]);
  child.spawn('sh', ['-c', 'for i in 0 1 2 3 4 5 6 7 8 9; do sleep 0.1; echo; done >"$0"', fifo], {stdio: 'ignore'});
  const from = fs.openSync(fifo, 'r');
  let received = 0;
  for (let n = 0; n < 10; n++) received += receive(from);
  fs.closeSync(from);
  return received;
}

async function main() {
  process.stdin.on('end', () => process.exit(0));
  await step('ready', {});
  repeat(render, 0.5);
  repeat(digest, 0.1);
  await step('warm', {});
  const rendered = repeat(render, 0.7);
  const digested = repeat(digest, 0.7);
  await step('computed', {render: rendered, digest: digested, both: rendered + digested});
  for (;;) await step('waited', {receive: receives()});
}

main();
