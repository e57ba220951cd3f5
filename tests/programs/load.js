// Load for Node: compiled code, built-in functions, the collector, C++ and its pool of threads; runs until it is killed.
'use strict';

const crypto = require('crypto');
const fs = require('fs');
const zlib = require('zlib');

const data = Buffer.alloc(65536, 'some text that can be compressed ');

function leafCompute(n) {
  let sum = 0;
  for (let i = 0; i < 200000; i++) sum = (sum * 31 + i * n) % 65521;
  return sum;
}
function innerCompute(n) { return leafCompute(n) + 1; }
function outerCompute(n) { return innerCompute(n) + 1; }

function builtins() {
  const numbers = Array.from({length: 500}, (_, n) => (n * 7919) % 503);
  numbers.sort((a, b) => a - b);
  const text = JSON.stringify(numbers.map((n) => ({n, text: `number ${n}`})));
  return JSON.parse(text).length + text.replace(/number (\d+)/g, (_, n) => n * 2).length + new Set(numbers).size;
}

function garbage() {
  const kept = [];
  for (let i = 0; i < 2000; i++) kept.push({i, list: [i, i + 1], text: 'a' + i});
  return kept.length;
}

function library() {
  crypto.createHash('sha256').update(data).digest();
  zlib.deflateSync(data);
  for (let i = 0; i < 20; i++) fs.statSync('/');
}

function failing(n) {
  try {
    throw new Error('number ' + n);
  } catch (error) {
    return error.stack.length;
  }
}

async function pool() {
  await new Promise((done) => crypto.pbkdf2('a', 'b', 1000, 32, 'sha256', done));
  await new Promise((done) => setTimeout(done, 5));
}

let rounds = 0;
function round() {
  rounds += outerCompute(rounds % 7) + builtins() + garbage() + failing(rounds);
  library();
  setImmediate(round);
}
(async () => { for (;;) await pool(); })();
round();
