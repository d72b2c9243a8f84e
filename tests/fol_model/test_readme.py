"""The example of fol_model/README.md runs as it stands there and prints what it says."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "fol_model" / "README.md"


def test_the_example_runs(capsys: pytest.CaptureFixture[str]):
    [example] = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)

    exec(compile(example, README, "exec"), {})

    shapes, matches = capsys.readouterr().out.splitlines()
    assert shapes == "torch.Size([2, 8448]) torch.Size([2, 16, 16]) torch.Size([103, 128])"
    assert 0 <= int(matches) <= 103
