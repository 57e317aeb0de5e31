"""The code blocks of the documents do what their pages say. ``documented_scenes.py`` has the scenes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from documented_scenes import SCENES
from servers import S3Server, kill_group

LIMIT_S = 900
TESTS = Path(__file__).parents[1]


def environment(folder, server):
    """That of a user with credentials for the only bucket, whose programs see these tests."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(("SPOT_", "AWS_"))}
    if server:
        given["AWS_ENDPOINT_URL"] = server.endpoint_url
        given["AWS_ACCESS_KEY_ID"] = server.key
        given["AWS_SECRET_ACCESS_KEY"] = server.SECRET
    return {
        **given,
        "COLUMNS": "200",
        "HF_HUB_OFFLINE": "1",
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}",
        "TMPDIR": str(folder),
    }


@pytest.mark.soak
@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: f"{scene.page}-{scene.blocks()[0].language}")
def test_the_blocks_work_as_written(scene, tmp_path):
    """With what the page takes as given, in a fresh process, with `s3://bucket` in a real S3 service."""
    if scene.needs and not shutil.which(scene.needs):
        pytest.skip(f"needs {scene.needs}")
    program = tmp_path / "scene.py"
    program.write_text(scene.code())
    folder = tmp_path / "me"
    folder.mkdir()
    with S3Server() if "s3://" in program.read_text() else nullcontext() as server:
        if server:
            server.create_bucket("bucket")
        for number in range(scene.num_runs):
            output = tmp_path / f"output-{number}"
            with output.open("w") as stream:
                process = subprocess.Popen(
                    [sys.executable, program],
                    cwd=folder,
                    env=environment(folder, server),
                    stdin=subprocess.PIPE,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                try:
                    process.communicate(b"\n", LIMIT_S)
                finally:
                    kill_group(process)
            assert process.returncode == 0, output.read_text()[-10_000:]
    assert scene.says in output.read_text()
