"""Writes the measured tables of README.md and docs/measured.md; `--check` only compares."""

from __future__ import annotations

from collections.abc import Callable
import sys
from typing import Any

from document_selection import METHODS
from measured_tables import markdown_table, percent, read_report, ROOT, write_tables

RESULTS = 'benchmarks/results'
SUFFIX = '2-core-cpu'
ONE_THREAD = f'{SUFFIX}-1-thread'
ENCODERS = {
    'siglip-so400m': 'SigLIP-so400m (DriveMM)',
    'internvit-300m': 'InternViT-300M (InternVL)',
    'qwen3-vl-8b': 'Qwen3-VL-8B (Cosmos-Reason2), 196,608 pixels per view',
}
SHOWN_RATIOS = (0.5, 0.25, 0.1, 0.05)


def read_result(name: str, suffix: str = SUFFIX) -> dict[str, Any]:
    """Return a report of benchmarks/results."""
    return read_report(f'{RESULTS}/{name}-{suffix}.json')


def transport_table() -> str:
    """Return how many sweeps arrive over DDS."""
    labels = {
        'dds_throughput': '`p2d replay`, transport profile of p2d_node',
        'dds_throughput-baseline': 'baseline: best-effort, Fast DDS out of the box',
    }
    rows = []
    for name, label in labels.items():
        report = read_result(name)
        published, complete = report['sweeps_published'], report['sweeps_complete']
        rows.append([label, f'{published}', f'{complete} ({percent(complete / published)})'])
    return markdown_table(['publisher', 'sweeps published', 'complete at the node'], 'lrr', rows)


def synchroniser_table() -> str:
    """Return what synchronisers make of simulated nuScenes sweeps."""
    report = read_result('camera_sync')
    head = (
        f'{report["num_sweeps"]:,} sweeps, {report["timing"]}; {report["whole_sweeps"]:,} of them '
        'have all six frames within the deadline.\n\n'
    )
    rows = [
        [
            row['synchroniser'],
            f'{row["sets"]:,}',
            f'{row["mixed"]:,}',
            f'{row["whole_sweeps_lost"]:,}',
            f'{row["us_per_frame"]:.1f}',
        ]
        for row in report['rows']
    ]
    header = ['synchroniser', 'sets', 'sets that mix two sweeps', 'whole sweeps lost']
    return head + markdown_table([*header, 'µs per frame'], 'lrrrr', rows)


def engine_table() -> str:
    """Return time and memory of engine builds."""
    report = read_result('engine_build')
    rows = []
    for result in report['results']:
        export, build = result['export'], result['build']
        memory = max(export['peak_memory_gib'], build['peak_memory_gib'])
        rows.append(
            [
                ENCODERS[result['model']],
                f'{export["seconds"]:.1f} s',
                f'{build["seconds"]:.1f} s',
                f'{memory:.2f} GiB',
                f'{result["plan_bytes"] / 1e6:.0f} MB',
            ]
        )
    header = ['encoder', 'export and check', 'build', 'peak memory', 'plan']
    return markdown_table(header, 'lrrrr', rows)


def node_table() -> str:
    """Return what the node makes of a drive at 12 Hz, and the times of its stages."""
    report = read_result('node', ONE_THREAD)
    answered, measured = report['sweeps_answered'], report['sweeps_complete'] - report['warm_up']
    head = (
        f'`{report["model"]}` on {report["encoder"]}, {report["questions"]} questions per sweep, '
        f'{report["torch_threads"]} thread of torch: {answered} of {measured} sweeps answered, '
        f'{report["sweeps_per_s"]:.1f} per second. Milliseconds per sweep; decoding and resizing '
        'of a sweep that waits count as waiting.\n\n'
    )
    rows = [
        [f'`{stage}`', f'{times["p50"]:.1f}', f'{times["p95"]:.1f}']
        for stage, times in report['stages'].items()
    ]
    return head + markdown_table(['stage', 'median', '95 %'], 'lrr', rows)


def transformers_table() -> str:
    """Return the time of questions about one sweep beside transformers' own processor."""
    report = read_result('against_transformers', ONE_THREAD)
    labels = {
        'transformers': 'transformers: its processor and `generate`, question by question',
        'unpruned': 'p2d_node, all visual tokens',
        'ten percent': 'p2d_node, 10 % kept',
    }
    rows = [
        [
            label,
            f'{report["median_ms"][way]:,.0f}',
            f'{report["faster"][way]:.1f}x',
            f'{report["same_texts"][way]} of {report["num_questions"]}',
        ]
        for way, label in labels.items()
    ]
    head = (
        f'Processor time in milliseconds, `{report["model"]}` in {report["dtype"]}, one thread, '
        f'median of {report["rounds"]} rounds.\n\n'
    )
    return head + markdown_table(['how', 'ms', 'faster', 'same text'], 'lrrr', rows)


def alpamayo_table() -> str:
    """Return what an imported Alpamayo 1.5 and the authors' code make of the same questions."""
    report = read_result('against_alpamayo')
    found, authors = report['comparisons'], report['authors']
    rows = []
    for num_cameras in sorted({case['num_cameras'] for case in found}, reverse=True):
        cases = [case for case in found if case['num_cameras'] == num_cameras]
        lengths = [case['num_prompt_tokens'] for case in cases]
        rows.append(
            [
                f'{num_cameras} x 4',
                f'{sum(case["same_prompt"] for case in cases)} of {len(cases)}',
                f'{min(lengths):,} to {max(lengths):,}',
                f'{max(case["logit_difference"] for case in cases):.1e}',
                f'{max(case["largest_logit"] for case in cases):.1f}',
                f'{sum(case["same_answer"] for case in cases)} of {len(cases)}',
                f'{sum(case["same_text"] for case in cases)} of {len(cases)}',
            ]
        )
    head = (
        "`benchmarks/against_alpamayo.py`: the authors' classes write a checkpoint of tiny random "
        'weights, their helper and processor the prompt, and their model decodes '
        f'{found[0]["num_answer_tokens"]} tokens greedily; then it is imported and asked here, '
        "unpruned, in float32. Attention is torch's sdpa on both sides, not the authors' "
        f'flash_attention_2. {report["cpu"]}, {report["cpu_cores"]} cores, torch '
        f'{report["torch"]}; transformers {authors["transformers"]} there, '
        f'{report["transformers"]} here. Of their packages only '
        f'{", ".join(report["stubs"]) or "nothing"} had to be replaced.\n\n'
    )
    heads = ['pictures', 'same token ids', 'tokens', 'logits differ by', 'largest logit']
    heads += ['same answer', 'same text of the pipeline']
    return head + markdown_table(heads, 'r' * len(heads), rows)


def clips_table() -> str:
    """Return the figures of benchmarks/clip_answers.py."""
    report = read_report(f'{RESULTS}/clip_answers.json')
    cases = report['cases']
    head = (
        f'{report["model"]}, {report["retention_ratio"]:.0%} kept, frames '
        f'{report["interval_ms"]:.0f} ms apart, {cases[0]["num_questions"]:,} questions about '
        f'{sum(cases[0]["clips"].values())} drawn keyframes; clips begin with each drive, so the '
        'first ones are shorter.\n\n'
    )
    rows = [
        [
            str(case['frames_per_camera']),
            f'`{case["selector"]}`',
            f'`{case["scope"]}`' if case['frames_per_camera'] > 1 else '',
            f'{case["accuracy"]:.1%}',
            f'{case["language"]:.3f}',
        ]
        for case in cases
    ]
    header = ['frames', 'selector', 'scope', 'accuracy', 'language']
    return head + markdown_table(header, 'rllrr', rows)


def encoder_table() -> str:
    """Return what number formats of the encoder cost and change."""
    report = read_result('encoder_weights', ONE_THREAD)
    rows = [
        [
            name,
            f'{row["encode_ms"]:.0f}',
            f'{row["faster"]:.2f}x',
            percent(row['kept_alike']),
            f'{row["answers_differ"]} of {row["answers"]}',
        ]
        for name, row in report['formats'].items()
    ]
    header = ['format', 'ms', 'faster', 'tokens kept as in float32', 'answers that differ']
    head = f'Six views, `{report["model"]}`, one thread, {report["sweeps"]} drawn sweeps.\n\n'
    return head + markdown_table(header, 'lrrrr', rows)


def accuracy_table() -> str:
    """Return what pruning costs p2d-mini, with prune_layer 0."""
    report = read_result('p2d_mini')
    accuracy = _accuracies(report)
    full, blank, other = (report[key]['accuracy'] for key in ('pictures', 'blank', 'shuffled'))
    head = (
        f'{report["pictures"]["questions"]:,} questions about {report["sweeps"]} held-out drawn '
        f'sweeps, answers right word for word, `prune_layer` 0. Unpruned: {percent(full)}. '
        f'Controls: grey pictures {percent(blank)}, pictures of another sweep {percent(other)}, '
        f'the most frequent answer of each kind of question {percent(report["majority"])}.\n\n'
        'Percent of right answers:\n\n'
    )
    rows = [
        [label, *(f'{accuracy[method, ratio]:.1f}' for ratio in SHOWN_RATIOS)]
        for method, label in METHODS.items()
    ]
    header = ['selector', *(f'{ratio:.0%} kept' for ratio in SHOWN_RATIOS)]
    return head + markdown_table(header, 'lrrrr', rows)


def _accuracies(report: dict[str, Any]) -> dict[tuple[str, float], float]:
    """Return selector and retention ratio to percent of right answers, with prune_layer 0."""
    return {
        (row['method'], row['retention_ratio']): 100 * row['accuracy']
        for row in report['retention']
        if row['prune_layer'] == 0
    }


def machine_text() -> str:
    """Return what the measurements ran on."""
    paths = (ROOT / RESULTS).glob(f'*{SUFFIX}*.json')
    reports = [read_report(f'{RESULTS}/{path.name}') for path in paths]
    cpus = sorted({report['cpu'] for report in reports if 'cpu' in report})
    versions = sorted({r['torch'].partition('+')[0] for r in reports if 'torch' in r})
    return (
        f'Machines: x86-64 cloud VMs with 2 cores ({" or ".join(cpus)}) and no GPU; Python 3.11, '
        f'torch {", ".join(versions)}, ROS 2 Kilted with Fast DDS.\n'
    )


def summary_table() -> str:
    """Return the main figures, each beside its baseline."""
    rows = [
        *_summary_of_transport(),
        _summary_of_synchroniser(),
        _summary_of_selection(),
        *_summary_of_language_model(),
        _summary_of_transformers(),
        _summary_of_accuracy(),
    ]
    return markdown_table(['what', 'p2d_node', 'baseline'], 'lll', rows)


def _summary_of_transport() -> list[list[str]]:
    ours, baseline = (read_result(name) for name in ('dds_throughput', 'dds_throughput-baseline'))
    return [
        [
            'Complete sweeps over DDS: six raw 1600x900 cameras at 12 Hz',
            f'{ours["sweeps_complete"]} of {ours["sweeps_published"]}',
            f'{baseline["sweeps_complete"]} of {baseline["sweeps_published"]} '
            '(best-effort, Fast DDS out of the box)',
        ]
    ]


def _summary_of_synchroniser() -> list[str]:
    ours, *others = read_result('camera_sync')['rows']
    worst = max(others, key=lambda row: row['mixed'])
    slop = worst['synchroniser'].removeprefix('message_filters ')
    return [
        'Sets that mix two sweeps: simulated nuScenes timing with losses',
        f'{ours["mixed"]} of {ours["sets"]:,}',
        f'{worst["mixed"]:,} of {worst["sets"]:,} (algorithm of message_filters, {slop})',
    ]


def _summary_of_selection() -> list[str]:
    (case,) = [
        case
        for case in read_result('select')['cases']
        if (case['num_tokens'], case['hidden'], case['retention_ratio']) == (729, 1152, 0.1)
    ]
    return [
        'T-FPS: 6 x 729 tokens of 1152 features, 10 % kept',
        f'{case["tfps_median_ms"]:.1f} ms',
        f'{case["baseline_median_ms"]:.1f} ms (published per-token loop)',
    ]


def _summary_of_language_model() -> list[list[str]]:
    prefill = read_result('prefill', ONE_THREAD)
    rows = {(row['retention_ratio'], row['prune_layer']): row for row in prefill['rows']}
    questions = read_result('questions', ONE_THREAD)
    together, separately = (questions['median_ms'][way] for way in ('together', 'separately'))
    return [
        [
            'Prefill of 6 x 729 tokens, 10 % kept: scaled model, random weights, one thread',
            f'{rows[0.1, 0]["prefill_ms"] / 1000:.2f} s',
            f'{rows[1.0, 0]["prefill_ms"] / 1000:.2f} s (unpruned)',
        ],
        [
            f'{questions["num_questions"]} questions about one sweep: the same model, 10 % kept',
            f'{together / 1000:.1f} s',
            f'{separately / 1000:.1f} s (one at a time)',
        ],
    ]


def _summary_of_transformers() -> list[str]:
    report = read_result('against_transformers', ONE_THREAD)
    times = report['median_ms']
    return [
        f'{report["num_questions"]} questions about one sweep, from JPEG to text: '
        f'{report["model"]}, one thread',
        f'{times["ten percent"]:,.0f} ms (10 % kept), {times["unpruned"]:,.0f} ms (unpruned)',
        f'{times["transformers"]:,.0f} ms (processor and generate of transformers)',
    ]


def _summary_of_accuracy() -> list[str]:
    report = read_result('p2d_mini')
    accuracy = _accuracies(report)
    return [
        f'Right answers of p2d-mini, 10 % kept: {report["pictures"]["questions"]:,} questions '
        'about drawn sweeps',
        f'{accuracy["tfps", 0.1]:.1f} %',
        f'{percent(report["pictures"]["accuracy"])} (unpruned); '
        f'{accuracy["grid", 0.1]:.1f} % (uniform grid); {accuracy["random", 0.1]:.1f} % (random)',
    ]


TABLES: dict[str, Callable[[], str]] = {
    'figures/alpamayo': alpamayo_table,
    'figures/summary': summary_table,
    'figures/transport': transport_table,
    'figures/synchroniser': synchroniser_table,
    'figures/node': node_table,
    'figures/transformers': transformers_table,
    'figures/encoder': encoder_table,
    'figures/clips': clips_table,
    'figures/engines': engine_table,
    'figures/accuracy': accuracy_table,
    'figures/machine': machine_text,
}


def make_table(name: str) -> str:
    """Return the table called `name`."""
    return TABLES[name]()


if __name__ == '__main__':
    sys.exit(
        max(write_tables(document, make_table) for document in ('README.md', 'docs/measured.md'))
    )
