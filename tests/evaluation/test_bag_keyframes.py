"""`p2d evaluate --bag`: the keyframes of a bag, twice, and what is refused."""

import json
import os
from pathlib import Path
import re
import shutil
import tempfile
import time
from types import SimpleNamespace

from p2d_node.bags import limits
from p2d_node.bags.drivelm import read_drivelm_images
from p2d_node.bags.writing import write_bag
from p2d_node.cli.main import EXIT_BAD_INPUT, main
from p2d_node.errors import ConfigError
from p2d_node.evaluation.answering import check_images
from p2d_node.evaluation.bag_keyframes import keyframes_of_bag
from p2d_node.evaluation.fingerprints import digest_questions
import pytest
from sweeps import jpeg, picture

QUESTIONS = (('What is ahead?', 'A car.'), ('Is it red?', 'No.'), ('Choose.', 'A'))


@pytest.fixture
def folder(tmp_path, image_names, monkeypatch) -> Path:
    """Data of two keyframes with three questions each, and a folder for temporary files."""
    qas = [{'Q': q, 'A': a, 'tag': [0] if len(a) == 1 else [2]} for q, a in QUESTIONS]
    frames = {
        f'f{number}': {'QA': {'perception': qas}, 'image_paths': names}
        for number, names in enumerate(image_names)
    }
    (tmp_path / 'data.json').write_text(json.dumps({'s': {'key_frames': frames}}))
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    return tmp_path


def make_bag(folder: Path, num_images: int = 12, **options) -> Path:
    images = list(read_drivelm_images(folder / 'data.json', folder))
    write_bag(images[:num_images], folder / 'bag', **options)
    return folder / 'bag'


@pytest.fixture
def evaluate(folder, tiny_checkpoint, capsys):
    """Evaluate with some options; return the report and the submission."""

    def run(out: str, *options: str):
        words = ['evaluate', '--data', str(folder / 'data.json'), '--model', str(tiny_checkpoint)]
        words += ['--out', str(folder / out), '--max-new-tokens', '16', '--json', *options]
        assert main(words) == 0
        assert list((folder / 'temporary').iterdir()) == []
        submission = json.loads((folder / out / 'submission.json').read_text())
        return json.loads(capsys.readouterr().out), submission

    return run


@pytest.mark.parametrize(
    'options',
    [{}, {'storage': 'sqlite3', 'encoding': 'bgr8'}, {'encoding': 'bgr8', 'compression': 'zstd'}],
    ids=['jpeg', 'raw', 'zstd'],
)
def test_two_runs_over_a_bag_give_the_answers_that_its_images_give(folder, evaluate, options):
    bag = make_bag(folder, **options)
    first, answers = evaluate('first', '--bag', str(bag))
    second, again = evaluate('second', '--bag', str(bag))
    report, right = evaluate('images', '--images', str(folder))
    assert answers == again == right
    assert first['accuracy'] == second['accuracy'] == report['accuracy']
    assert first['language'] == second['language'] == report['language']
    assert first['num_questions'] == 6
    assert not any('the bag has' in note for note in first['notes'])


def test_only_the_keyframes_of_the_bag_are_scored_and_that_is_said(folder, evaluate):
    report, answers = evaluate('out', '--bag', str(make_bag(folder, num_images=11)))
    assert [item['id'] for item in answers] == [f's_f0_{number}' for number in range(3)]
    assert report['num_questions'] == 3
    assert 'the bag has the images of 3 of the 6 questions of the data' in report['notes']


def test_bags_add_up_to_one_file_of_answers(folder, evaluate):
    _, first = evaluate('out', '--bag', str(make_bag(folder, num_images=6)))
    shutil.rmtree(folder / 'bag')
    _, both = evaluate('out', '--bag', str(make_bag(folder)))
    assert (len(first), len(both)) == (3, 6)
    assert both[:3] == first
    assert len((folder / 'out' / 'answers.jsonl').read_text().splitlines()) == 1 + 6


def refusal(folder: Path, capsys, *options: str) -> str:
    words = ['evaluate', '--data', str(folder / 'data.json'), '--out', str(folder / 'out')]
    assert main([*words, *options]) == EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_bag_that_cannot_be_used_is_named(folder, capsys, monkeypatch):
    bag = make_bag(folder, num_images=5)
    line = refusal(folder, capsys, '--bag', str(bag))
    assert re.search(r'--bag: .*bag has all images of none of the 6 questions, needed: im', line)
    line = refusal(folder, capsys, '--bag', str(folder / 'nothing'))
    assert re.search(r"--bag: got '.*nothing', which does not exist", line)
    for options, reason in (
        (['--images', str(folder)], '--images, --bag: got both, allowed: one of them'),
        (['--predictions', 'a.json'], 'which has no effect with --predictions'),
        (['--scheduler', 'tcp://a:1'], '--scheduler: got tcp://a:1, allowed with --bag: none'),
    ):
        assert reason in refusal(folder, capsys, '--bag', str(bag), *options)
    (file,) = bag.glob('*.mcap')
    file.write_bytes(file.read_bytes().replace(b'\xff\xd8\xff', b'\xff\xd8\xfe'))
    line = refusal(folder, capsys, '--bag', str(bag))
    assert re.search(r'--bag: .* is damaged: \d+ ns: CAM_\w+: .* copy it again', line)
    assert not (folder / 'out').exists()
    assert list((folder / 'temporary').iterdir()) == []


@pytest.mark.attack(
    'data for p2d evaluate --bag that names an image by an absolute path, to overwrite that file',
    'refused before the bag is read',
)
@pytest.mark.parametrize('hostile', ['{folder}/{name}', '{folder}/samples/../{name}'])
def test_a_name_in_the_data_overwrites_no_file(folder, image_names, capsys, hostile):
    bag = make_bag(folder)
    name = image_names[0]['CAM_FRONT']
    victim = folder / Path(name).name
    victim.write_text('precious')
    data = folder / 'data.json'
    text = data.read_text()
    data.write_text(text.replace(name, hostile.format(folder=folder, name=victim.name)))
    line = refusal(folder, capsys, '--bag', str(bag))
    assert re.search(r"__CAM_FRONT__\d+\.jpg': (leads out of|not a nuScenes image name)", line)
    assert victim.read_text() == 'precious'


@pytest.mark.attack(
    'a bag with the capture stamps of one that was answered, but with other pictures',
    'the stored answers are not reported for them: refused',
)
def test_answers_about_other_pictures_are_refused(folder, evaluate, tiny_checkpoint, capsys):
    evaluate('out', '--bag', str(make_bag(folder)))
    shutil.rmtree(folder / 'bag')
    for path in sorted((folder / 'samples' / 'CAM_BACK').iterdir())[1:]:
        path.write_bytes(jpeg(picture(99)).data)
    words = ('--max-new-tokens', '16', '--model', str(tiny_checkpoint))
    line = refusal(folder, capsys, '--bag', str(make_bag(folder)), *words)
    assert re.search("answer to 's_f1_0' is about pictures of SHA-256 '.{16}', now those of", line)
    assert 'choose another output folder' in line


@pytest.mark.attack(
    'a link or a sparse file in the folder of a bag, so that its images may have terabytes',
    'only bytes on the disk of files in the folder count',
)
def test_links_and_sparse_files_in_a_bag_do_not_count(folder, monkeypatch):
    monkeypatch.setattr(limits, 'max_file_bytes', lambda num_bytes, _: num_bytes)
    bag = make_bag(folder)
    before = limits.max_image_bytes(bag, folder)
    assert before > 1000
    (bag / 'large').touch()
    os.truncate(bag / 'large', 1 << 40)
    (bag / 'link').symlink_to(folder / 'data.json')
    (bag / 'nowhere').symlink_to(folder / 'nothing')
    (bag / 'folder').mkdir()
    assert limits.max_image_bytes(bag, folder) == before


@pytest.mark.attack(
    'a bag for p2d evaluate whose images would fill the disk',
    'refused above 1000 times its size (at least 1 GiB) and half of the free space',
)
def test_images_of_a_bag_are_written_up_to_a_limit(folder, capsys, monkeypatch):
    bag = make_bag(folder)
    monkeypatch.setattr(limits, 'max_file_bytes', lambda *sizes: sizes[0] // 2)
    line = refusal(folder, capsys, '--bag', str(bag))
    assert re.search(r'got images of \d+ bytes, allowed: at most \d+', line)
    assert list((folder / 'temporary').iterdir()) == []


@pytest.mark.attack(
    'data of megabytes for p2d evaluate, with 30,000 questions about 64 images with long names',
    'the names of a keyframe are read once for all its questions',
)
def test_names_are_read_once_per_keyframe(folder):
    deep = 'samples/' + 'x/' * 480
    images = {f'CAM_{i}': f'{deep}__CAM_{i}__{10**15 + i}.jpg' for i in range(64)}
    (folder / deep).mkdir(parents=True)
    for name in images.values():
        (folder / name).touch()
    bag = make_bag(folder)
    questions = [SimpleNamespace(images=images, id=str(i), question='') for i in range(30_000)]
    begin = time.process_time()
    with pytest.raises(ConfigError, match='all images of none of the 30000 questions'):
        keyframes_of_bag(bag, questions).__enter__()
    check_images([SimpleNamespace(questions=questions)], folder, list(images))
    digest_questions(questions)
    assert time.process_time() - begin < 3.0
