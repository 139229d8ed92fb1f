"""An OpenAI-compatible server in a thread, which fails when it is told to."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextlib.contextmanager
def completion_server():
    """Answers with what `replies` holds, one after the other, then with `texts(body)`; keeps the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            held.requests.append((self.path, body, self.headers.get("Authorization")))
            reply = held.replies.pop(0) if held.replies else 200
            status, headers, content = reply if isinstance(reply, tuple) else (reply, {}, None)
            if content is None:
                content = "no"
                if status == 200:
                    key = "message" if "messages" in body else "text"
                    texts = held.texts(body)
                    values = (
                        [{"role": "assistant", "content": text} for text in texts]
                        if key == "message"
                        else texts
                    )
                    content = json.dumps({"choices": [{key: value} for value in values]})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_):
            pass

    def numbered(body):
        return [f"{len(held.requests)}.{i}" for i in range(min(body["n"], held.at_a_time))]

    held = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    held.requests, held.replies, held.at_a_time, held.texts = [], [], 100, numbered
    held.url = f"http://127.0.0.1:{held.server_port}/v1"
    thread = threading.Thread(target=held.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        held.shutdown()
        held.server_close()
        thread.join()
