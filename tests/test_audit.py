"""The audit of the pinned packages, with pip-audit and a small service of vulnerabilities."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
import json
from pathlib import Path
import subprocess
import sys
import threading

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Vulnerabilities(BaseHTTPRequestHandler):
    """Answers as OSV does: the package `harmless` has a vulnerability, others have none."""

    def do_POST(self) -> None:
        """Answer a query for one version of one package."""
        query = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        answer = {}
        if query['package']['name'] == 'harmless':
            affected = {
                'package': query['package'],
                'ranges': [
                    {'type': 'ECOSYSTEM', 'events': [{'introduced': '0'}, {'fixed': '1.1'}]}
                ],
            }
            found = {'id': 'PYSEC-1', 'details': 'text', 'aliases': [], 'affected': [affected]}
            answer = {'vulns': [found]}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None:
        """Print nothing."""


@pytest.fixture(scope='module')
def osv_url() -> Iterator[str]:
    server = HTTPServer(('127.0.0.1', 0), Vulnerabilities)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def audit(folder: Path, pins: str, ignored: str, osv_url: str) -> subprocess.CompletedProcess[str]:
    (folder / 'pins.txt').write_text(pins)
    (folder / 'ignored.txt').write_text(ignored)
    command = [sys.executable, str(ROOT / 'tools' / 'audit.py'), str(folder / 'pins.txt')]
    command += ['--ignore', str(folder / 'ignored.txt'), '--osv-url', osv_url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.attack(
    'a pinned package has a known vulnerability',
    'make test fails until the package is updated, or the vulnerability is listed with a reason',
)
def test_the_audit_fails_on_a_known_vulnerability(tmp_path, osv_url):
    done = audit(tmp_path, 'harmless==1.0\nother==2.0\n', '', osv_url)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ['audit: harmless 1.0: PYSEC-1, fixed in 1.1']


def test_the_audit_accepts_a_vulnerability_that_is_listed_with_a_reason(tmp_path, osv_url):
    done = audit(tmp_path, 'harmless==1.0\n', 'PYSEC-1  # its parser is not used\n', osv_url)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout == 'audit: no known vulnerability; packages: 1\n'


def test_the_audit_accepts_no_vulnerability_without_a_reason(tmp_path, osv_url):
    done = audit(tmp_path, 'harmless==1.0\n', 'PYSEC-1\n', osv_url)
    assert done.returncode == 1
    assert "got 'PYSEC-1', needed: ID  # the reason" in done.stderr


def test_an_unreachable_list_of_vulnerabilities_is_reported_and_no_failure(tmp_path):
    done = audit(tmp_path, 'harmless==1.0\n', '', 'http://127.0.0.1:9')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith('audit: skipped, the list of vulnerabilities cannot be reached')
    assert done.stdout.count('\n') == 1


def test_an_audit_of_a_file_without_versions_is_a_failure(tmp_path, osv_url):
    done = audit(tmp_path, 'harmless\n', '', osv_url)
    assert done.returncode == 1
    assert 'harmless' in done.stderr
