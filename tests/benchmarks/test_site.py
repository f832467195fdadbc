"""The pages that people wrote by hand agree with the code, and the site tells of broken links."""

from pathlib import Path
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / 'docs' / 'site'
QUOTED = re.compile(r'"([^"]+)"')
SPLIT_TEXT = re.compile(r"'\s*\n\s*f?'")
SKIPPED = re.compile(r'--skip-keys "([^"]+)"')


def first_cells(document: str) -> list[str]:
    """The first column of all tables of a document."""
    lines = (ROOT / 'docs' / document).read_text().splitlines()
    return [line.split(' | ')[0] for line in lines if line.startswith('| ')]


def test_every_message_in_the_list_of_symptoms_is_one_of_the_program():
    sources = [path.read_text() for path in (ROOT / 'src').rglob('*.py')]
    said = SPLIT_TEXT.sub('', '\n'.join(sources))
    quoted = QUOTED.findall('\n'.join(first_cells('troubleshooting.md')))
    assert len(quoted) > 15
    assert [text for text in quoted if text not in said] == []


def test_rosdep_skips_the_keys_that_pip_installs():
    package = ElementTree.parse(ROOT / 'package.xml')
    keys = [element.text for element in package.iter('exec_depend')]
    from_pip = {key for key in keys if key == 'python3-torch' or key.endswith('-pip')}
    (skipped,) = SKIPPED.findall((ROOT / 'docs' / 'install.md').read_text())
    assert set(skipped.split()) == from_pip


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-c', str(SITE)]
    return subprocess.run(
        [*command, str(source), str(out)], capture_output=True, text=True, check=False, timeout=100
    )


@pytest.mark.slow
def test_a_link_that_leads_nowhere_fails_the_site(tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    (source / 'README.md').write_text('# Title\n\n[gone](gone.md) and [no part](#no-part)\n')
    done = build(source, tmp_path / 'out')
    assert done.returncode != 0
    assert "cross-reference target not found: 'gone.md'" in done.stderr
    assert "cross-reference target not found: 'no-part'" in done.stderr


@pytest.mark.slow
def test_the_site_asks_no_other_host_for_anything(tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    (source / 'README.md').write_text('# Title\n')
    build(source, tmp_path / 'out')
    page = (tmp_path / 'out' / 'README.html').read_text()
    loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="([^"]+)"', page)
    assert loaded
    assert [address for address in loaded if '//' in address] == []
