// A service that reads each path in every way that Node offers, without letter case and a final slash, and says which areas it
// would have served: "open", "secret" or "admin".
const http = require('node:http');
const path = require('node:path');
const url = require('node:url');

const attempt = (read) => { try { return read(); } catch { return undefined; } };

function readings(target) {
  const raw = target.replace(/^https?:\/\/[^/]*/, '').split('?')[0];
  const texts = [
    raw,
    raw.split(';')[0],
    attempt(() => new URL(target, 'http://service.test').pathname),
    attempt(() => url.parse(target).pathname),
    attempt(() => url.parse(target, false, true).pathname),
  ];
  for (let times = 0; times < 2; times++) {
    for (const text of texts.filter(Boolean)) {
      const decoded = attempt(() => decodeURIComponent(text));
      texts.push(decoded, decoded && attempt(() => new URL(decoded, 'http://service.test').pathname));
    }
  }
  for (const text of texts.filter(Boolean)) {
    texts.push(path.posix.normalize(text), path.win32.normalize(text).replaceAll('\\', '/'));
    texts.push(text.replace(/;[^/]*/g, ''), text.split(/[?#;]/)[0]);
  }
  return texts.filter(Boolean);
}

function area(text) {
  const plain = text.toLowerCase().replace(/\/$/, '');
  if (plain === '/v1/rotate' || plain === '/v1/admin' || plain.startsWith('/v1/admin/')) return 'admin';
  if (plain === '/api' || plain.startsWith('/api/')) return 'secret';
  return 'open';
}

const server = http.createServer((request, response) => {
  response.end([...new Set(readings(request.url).map(area))].join(' '));
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
