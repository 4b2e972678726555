// SPDX-License-Identifier: MIT
// A WebSocket server: each message is numbered, hashed by a worker thread and answered; GET / tells the state.
'use strict';

const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const { Worker, isMainThread, parentPort } = require('worker_threads');

if (!isMainThread) {
  parentPort.on('message', ({ id, text }) => {
    parentPort.postMessage({ id, hash: crypto.createHash('sha256').update(text).digest('hex') });
  });
  return;
}

// Debian's package, nothing from elsewhere.
const { WebSocketServer } = require('ws');

const KEPT_BYTES = 16 << 20;
const kept = crypto.randomBytes(KEPT_BYTES);
const digest = () => crypto.createHash('md5').update(kept).digest('hex');
const state = { pid: process.pid, marker: digest(), messages: 0, ticks: 0, appended: 0, errors: 0, lastError: '' };
const path = process.argv[3];

function wrong(text) {
  state.errors += 1;
  state.lastError = String(text);
}

// Timers, and a file that libuv's thread pool appends to.
let before = process.hrtime.bigint();
setInterval(() => {
  const now = process.hrtime.bigint();
  if (now < before) wrong('the clock went back');
  before = now;
  state.ticks += 1;
}, 100);
let appending = false;
setInterval(() => {
  if (appending) return;
  appending = true;
  fs.appendFile(path, `line ${state.appended}\n`, (error) => {
    appending = false;
    if (error) wrong(error);
    else state.appended += 1;
  });
}, 200);

const worker = new Worker(__filename);
const waiting = new Map();
let next = 0;
worker.on('error', wrong);
worker.on('exit', (code) => wrong(`the worker thread ended: ${code}`));
worker.on('message', ({ id, hash }) => {
  waiting.get(id)(hash);
  waiting.delete(id);
});

const server = http.createServer((request, response) => {
  response.end(`${JSON.stringify({ ...state, digest: digest() })}\n`);
});
new WebSocketServer({ server }).on('connection', (socket) => {
  let served = 0;
  socket.on('error', wrong);
  socket.on('message', (data) => {
    const text = data.toString();
    const number = served;
    served += 1;
    waiting.set(next, (hash) => {
      state.messages += 1;
      socket.send(JSON.stringify({ number, hash, marker: state.marker, ticks: state.ticks }));
    });
    worker.postMessage({ id: next, text });
    next += 1;
  });
});
server.listen(Number(process.argv[2]), '0.0.0.0');
