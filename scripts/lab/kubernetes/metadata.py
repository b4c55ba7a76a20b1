"""A stand-in for a cloud's metadata server, as a pod can reach it: `python -m scripts.lab.kubernetes.metadata ADDRESS`.

It gives an access token to whoever asks as Google's does, so a test can show that a pod gets none.
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

FLAVOR = "Metadata-Flavor"
PORT = 80


class Metadata(BaseHTTPRequestHandler):
    """Answers of the server: an access token, or what is wrong with the request."""

    answers: ClassVar[dict[str, str]] = {
        "/computeMetadata/v1/instance/service-accounts/default/token": (
            '{"access_token":"a-token-of-the-stand-in","expires_in":3600,"token_type":"Bearer"}'
        ),
        "/computeMetadata/v1/project/project-id": "stand-in",
    }

    def do_GET(self) -> None:
        """Answer 403 without Google's header, and 404 for what there is not."""
        if self.headers.get(FLAVOR) != "Google":
            self._send(403, f"Missing {FLAVOR}:Google header.")
        elif self.path in self.answers:
            self._send(200, self.answers[self.path])
        else:
            self._send(404, "not found")

    def _send(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header(FLAVOR, "Google")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer((sys.argv[1], PORT), Metadata).serve_forever()
