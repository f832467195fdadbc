"""Looks the pinned packages up in a list of known vulnerabilities. `make audit` runs it.

Usage: python tools/audit.py FILE...
Exit code 1: a package has a vulnerability that requirements/audit-ignore.txt does not list. If
the list cannot be reached, one line says so and the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import subprocess
import sys

IGNORE_FILE = Path(__file__).parents[1] / 'requirements' / 'audit-ignore.txt'
TIME_LIMIT_S = 60
# What pip-audit's last line contains if the list cannot be reached or does not know a package.
UNREACHABLE = (
    'requests.exceptions.',
    'pip_audit._service.interface.',
    'your network may be blocking this service',
    'not found on PyPI and could not be audited',
)


def main() -> int:
    """Audit the files of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('files', nargs='+', help='requirements with exact versions')
    parser.add_argument('--ignore', type=Path, default=IGNORE_FILE, help='accepted IDs')
    parser.add_argument('--osv-url', help='ask this service, with the API of OSV, and not PyPI')
    arguments = parser.parse_args()
    try:
        done = run_pip_audit(arguments.files, read_ignored(arguments.ignore), arguments.osv_url)
    except subprocess.TimeoutExpired:
        return report_unreachable(f'no result after {TIME_LIMIT_S} s')
    if done.stdout:
        return report(json.loads(done.stdout)['dependencies'])
    last_line = done.stderr.strip().rpartition('\n')[2].removeprefix('ERROR:pip_audit._cli:')
    if any(text in last_line for text in UNREACHABLE):
        return report_unreachable(last_line)
    sys.exit(f'audit: pip-audit failed: {last_line}')


def read_ignored(path: Path) -> list[str]:
    """Return the IDs of the accepted vulnerabilities; each needs a reason."""
    ignored = []
    for line in path.read_text(encoding='utf-8').splitlines():
        name, _, reason = (part.strip() for part in line.partition('#'))
        if name and not reason:
            sys.exit(f'audit: {path}: got {name!r}, needed: ID  # the reason to accept it')
        if name:
            ignored.append(name)
    return ignored


def run_pip_audit(
    files: list[str], ignored: list[str], osv_url: str | None
) -> subprocess.CompletedProcess[str]:
    """Run pip-audit on the versions as they stand; it installs and resolves nothing."""
    command = [sys.executable, '-m', 'pip_audit', '--disable-pip', '--no-deps', '--strict']
    command += ['--format', 'json', '--desc', 'off', '--progress-spinner', 'off']
    command += ['--timeout', '10']
    command += [f'--requirement={file}' for file in files]
    command += [f'--ignore-vuln={name}' for name in ignored]
    if osv_url:
        command += ['--vulnerability-service=osv', f'--osv-url={osv_url}']
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False
    )


def report(packages: list[dict[str, object]]) -> int:
    """Print each vulnerability; return the exit code."""
    found = 0
    for package in packages:
        for vulnerability in package['vulns']:
            found += 1
            fixed = ', '.join(vulnerability['fix_versions']) or 'no version yet'
            print(
                f'audit: {package["name"]} {package["version"]}: {vulnerability["id"]}, '
                f'fixed in {fixed}',
                file=sys.stderr,
            )
    if found:
        print(f'audit: update them and run make lock, or list them in {IGNORE_FILE.name}')
        return 1
    print(f'audit: no known vulnerability; packages: {len(packages)}')
    return 0


def report_unreachable(reason: str) -> int:
    """Say that nothing was audited; that is no failure."""
    print(f'audit: skipped, the list of vulnerabilities cannot be reached ({reason[:200]})')
    return 0


if __name__ == '__main__':
    sys.exit(main())
