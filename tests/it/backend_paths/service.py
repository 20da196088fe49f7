"""A service that reads each path in every way that Python's library offers, without letter case and a final slash, and says which
areas it would have served: "open", "secret" or "admin"."""

import http.server
import os
import posixpath
import re
import sys
from urllib.parse import unquote, urlparse, urlsplit


def path_of(parse, text):
    try:
        return parse(text).path
    except ValueError:
        return text


def readings(handler):
    target = handler.path
    texts = [target.split("?")[0], target.split(";")[0], path_of(urlsplit, target), path_of(urlparse, target)]
    files = http.server.SimpleHTTPRequestHandler.translate_path(handler, target)
    texts.append("/" + os.path.relpath(files, handler.directory))
    texts += [unquote(text) for text in texts]
    texts += [unquote(text) for text in texts]
    texts += [path_of(urlsplit, text) for text in texts]
    texts += [posixpath.normpath(text) for text in texts]
    texts += [re.sub("/+", "/", text.replace("\\", "/")) for text in texts]
    texts += [re.sub(";[^/]*", "", text) for text in texts]
    return texts


def area(text):
    plain = re.sub("/$", "", text.lower())
    if plain in ("/v1/rotate", "/v1/admin") or plain.startswith("/v1/admin/"):
        return "admin"
    if plain == "/api" or plain.startswith("/api/"):
        return "secret"
    return "open"


class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    directory = "/nowhere"

    def do_GET(self):
        body = " ".join({area(text) for text in readings(self)}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
print(server.server_address[1], flush=True)
sys.stdout.close()
server.serve_forever()
