"""Records sweeps for rerun, along the capture clock and the number of the sweep.

The viewer of rerun is not started: it listens on all networks, and shows what comes to any
program that has taken its port.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from p2d_node.durable_files import refuse_link, write_faults
from p2d_node.errors import one_line
from p2d_node.viewers.shown_sweep import image_format, require_library, ShownSweep

APPLICATION = 'p2d_node'


class RerunViewer:
    """A recording.

    The timeline `capture` is the ROS time of the cameras, `sweep` counts answered sweeps.
    """

    def __init__(self, path: Path) -> None:
        """Start.

        Args:
            path: The file to write, *.rrd.

        Raises:
            BackendUnavailableError: rerun-sdk is not installed.
            ConfigError: The file cannot be written, or is a link.
        """
        require_library('rerun', '--rerun')
        import rerun

        self._rerun = rerun
        self._stream = rerun.RecordingStream(APPLICATION)
        refuse_link(path, 'rerun')
        with write_faults(f'rerun: {path}', 'name another file'):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        self._stream.save(path)

    def show(self, sweep: ShownSweep) -> None:
        """Log one sweep."""
        rerun, log = self._rerun, self._stream.log
        self._stream.set_time('capture', timestamp=np.datetime64(sweep.stamp_ns, 'ns'))
        self._stream.set_time('sweep', sequence=sweep.number)
        pictures = {f'views/{camera}': image for camera, image in sweep.views.items()}
        if sweep.kept_tokens:
            pictures['kept_tokens'] = sweep.kept_tokens
        for path, image in pictures.items():
            media_type = f'image/{image_format(image)}'
            log(path, rerun.EncodedImage(contents=image, media_type=media_type))
        lines = [one_line(text) for pair in sweep.answers for text in pair]
        log('answers', rerun.TextDocument('\n\n'.join(lines), media_type='text/plain'))
        for camera, count in sweep.tokens_kept.items():
            log(f'tokens/{camera}', rerun.Scalars(count))
        for name, value in sweep.times_ms.items():
            log(f'times/{name}', rerun.Scalars(value))

    def close(self) -> None:
        """Write what is left."""
        self._stream.disconnect()
