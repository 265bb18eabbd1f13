"""One request to a judge on this machine."""

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer


class Judge(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": json.dumps({"score": 4, "reason": "clear"})}
        body = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


server = HTTPServer(("127.0.0.1", 0), Judge)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1"
command = ["wavalign-fast", "judge", "check", "--url", url, "--model", "ear"]
done = subprocess.run(command, capture_output=True, text=True, check=False)
assert done.returncode == 0 and "4" in done.stdout, done.stdout + done.stderr
