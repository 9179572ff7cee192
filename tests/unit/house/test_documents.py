# SPDX-License-Identifier: Apache-2.0
"""The reader of documents: what it takes for a command, what it refuses, and how it says that one failed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinema_api.job import JobSpec

from tests import documents
from tests.documents import Command, DocumentError, File, Piece, Reader, Skipped, parse, read

PAGE = """\
# A page

<!-- your file: mine.txt -->
```yaml
what: ever
```

<!-- file: job.yaml -->
```yaml
kind: Job
```

```console
$ WORD=one
$ cat job.yaml \\
    mine.txt
kind: Job
...
$ cat <<'EOF'
$ no command
EOF
$ exit 3
# exit code 3
```

<!-- not run: needs the moon -->
```console
$ fly
```

```yaml
part: of something
```
"""


def reader(folder: Path, **own: str) -> Reader:
    return Reader(folder, {}, own={name.replace("_", "."): text for name, text in own.items()})


def test_a_page_is_its_steps() -> None:
    steps = parse(PAGE, name="page").steps
    assert steps == (
        File(4, "mine.txt", "what: ever\n", yours=True),
        File(9, "job.yaml", "kind: Job\n"),
        Command(14, "WORD=one"),
        Command(15, "cat job.yaml \\\n    mine.txt", ("kind: Job", "...")),
        Command(19, "cat <<'EOF'\n$ no command\nEOF"),
        Command(22, "exit 3", (), 3),
        Skipped(27, "needs the moon", (Command(28, "fly"),)),
        Piece(31, "yaml", "part: of something\n"),
    )


def test_what_a_page_says_is_done(tmp_path: Path) -> None:
    printed = reader(tmp_path, mine_txt="my own\n").run(parse(PAGE, name="page"))
    assert printed == ["", "kind: Job\nmy own\n", "$ no command\n", ""]


def test_variables_and_the_folder_stay(tmp_path: Path) -> None:
    page = parse("```console\n$ WORD='a b'; cd docs\n$ echo $WORD; basename $PWD\na b\ndocs\n```\n", name="page")
    assert reader(tmp_path).run(page) == ["", "a b\ndocs\n"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```bash\nls\n```\n", "page:1: ```bash is run by nobody"),
        ("```\n$ ls\n```\n", "page:1: commands are in a block that is not"),
        ("text\n\n    $ ls\n", "page:3: a command outside"),
        ("text\n\n    kubectl get vtj\n", "page:3: a command outside"),
        ("```console\nls\n```\n", "page:2: a ```console block begins with a prompt"),
        ("```console\n$ ls \\\n```\n", "page:2: the command has no end"),
        ("```console\n$ cat <<EOF\nx\n```\n", "page:2: the command has no end"),
        ("```console\n$ ls\n", "page:1: the block has no end"),
        ("<!-- not run -->\n```console\n$ ls\n```\n", "page:2: `not run` must say why"),
        ("<!-- not run: why -->\n\nmore text\n```console\n$ ls\n```\n", "page:1: no block follows"),
        ("<!-- file: a -->\n", "page:1: no block follows"),
        ("<!-- not run: why -->\n```yaml\na: b\n```\n", "page:2: only ```console blocks are run"),
    ],
)
def test_nothing_is_passed_over_in_silence(text: str, said: str) -> None:
    with pytest.raises(DocumentError, match=f"^{re.escape(said)}"):
        parse(text, name="page")


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("$ true\n$ ls /nowhere\n", r"^page:3: `ls /nowhere` ended with code 2, not 0:\n(?s:.*)No such file"),
        ("$ false | true\n", r"^page:2: .* ended with code 1"),
        ("$ no-such-program\n", r"^page:2: .* ended with code 127"),
        ("$ true\n# exit code 1\n", r"^page:2: .* ended with code 0, not 1"),
        ("$ echo one two\none\n", r"^page:2: .* did not print `one`"),
        ("$ echo a; echo b\nb\na\n", r"^page:2: .* did not print `a`"),
    ],
)
def test_a_command_that_fails_is_named_with_its_line(tmp_path: Path, block: str, said: str) -> None:
    with pytest.raises(DocumentError, match=said):
        reader(tmp_path).run(parse(f"```console\n{block}```\n", name="page"))


def test_a_command_that_does_not_end(tmp_path: Path) -> None:
    hasty = Reader(tmp_path, {}, timeout=0.2)
    with pytest.raises(DocumentError, match=r"^page:2: `echo began; sleep 9` did not end within 0 s:\nbegan"):
        hasty.run(parse("```console\n$ echo began; sleep 9\n```\n", name="page"))


def test_a_file_of_ones_own_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"^page:4: mine.txt is the reader's own"):
        reader(tmp_path).run(parse(PAGE, name="page"))


def test_every_page_with_commands_is_run_somewhere() -> None:
    places = (documents.ON_THE_CLUSTER, documents.ON_THE_CONTROL_PLANE, documents.ON_THIS_MACHINE)
    assert sorted(name for place in places for name in place) == documents.pages()
    for place in places:
        assert all(read(name).commands for name in place)


def test_pieces_of_jobs_are_what_a_job_may_say() -> None:
    pieces = [step.text for name in documents.pages() for step in read(name).of(Piece) if isinstance(step, Piece)]
    assert pieces
    for piece in pieces:
        for name, value in yaml.safe_load(piece).items():
            annotation: Any = JobSpec.model_fields[name].annotation
            annotation.model_validate(value)


def test_each_reason_not_to_run_a_block_is_a_sentence() -> None:
    reasons = [step.reason for name in documents.pages() for step in read(name).steps if isinstance(step, Skipped)]
    assert [reason for reason in reasons if len(reason.split()) < 2] == []
