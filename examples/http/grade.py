"""A reward behind HTTP, with the standard library alone: python3 grade.py, then cluster launch http_reward.toml."""
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def grade(sample, item):
    answer = sample["turns"][-1]["content"].strip()
    return {"score": max(0.0, 1.0 - len(answer) / 40), "breakdown": {"characters": len(answer)}}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        group = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        scores = [grade(sample, group["item"]) for sample in group["samples"]]
        body = json.dumps({"scores": scores}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 8700), Handler).serve_forever()
