"""An HTTP service with a pool of connections to PostgreSQL, and one query for each request: upstream.py DSN SIZE.

Tells what it counted by lines of JSON, one for each line that it reads."""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from psycopg2.pool import ThreadedConnectionPool

lock = threading.Lock()
counts = {"accepted": 0, "requests": 0, "queries": 0}


def add(what):
    with lock:
        counts[what] += 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    # An answer is one write.
    wbufsize = -1

    def do_GET(self):
        add("requests")
        connection = pool.getconn()
        with connection.cursor() as cursor:
            cursor.execute("select abalance from pgbench_accounts where aid = 7")
            body = b"%d\n" % cursor.fetchone()[0]
        pool.putconn(connection)
        add("queries")
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *values):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def process_request(self, request, address):
        add("accepted")
        super().process_request(request, address)


def step(name, facts):
    print(json.dumps({"step": name, "pid": os.getpid(), "facts": facts}), flush=True)
    if not sys.stdin.readline():
        sys.exit()


server = Server(("127.0.0.1", 0), Handler)
step("ready", {"port": server.server_address[1]})
size = int(sys.argv[2])
pool = ThreadedConnectionPool(size, size, sys.argv[1])
# Each query is a transaction of its own.
each = [pool.getconn() for _ in range(size)]
for connection in each:
    connection.autocommit = True
    pool.putconn(connection)
threading.Thread(target=server.serve_forever, daemon=True).start()
step("opened", {})
while True:
    with lock:
        told = dict(counts)
    step("counted", told)
