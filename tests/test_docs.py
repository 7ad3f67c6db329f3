"""The README and the pages: blocks run as they stand there, commands and links exist, no public name is missing, drawings are current."""

import ast
import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import pytest

import cpunorm as cn
from cpunorm import cli, conventions, functional, nn

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^(?P<before>[^\n]*)\n(?P<fence>```+)(?P<language>\w+)\n(?P<text>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: \w.+ -->")
MOST_NOT_RUN = 3
OTHERS = {"cv2", "dask", "distributed", "onnxruntime", "sklearn", "torch"}  # that some pages import


def text_of(page):
    return (ROOT / page).read_text()


def blocks(page, *languages):
    """(line, text) of the blocks in these languages that are not marked as not run."""
    for found in BLOCK.finditer("\n" + text_of(page)):
        if found["language"] in languages and not NOT_RUN.search(found["before"]):
            yield found.string.count("\n", 0, found.start("text")), found["text"]


def programs(page):
    """What runs in one namespace: a page's blocks from top to bottom; in the README, each alone."""
    found = list(blocks(page, "python"))
    return [[block] for block in found] if page == "README.md" else [found] if found else []


def imported(program):
    """Other libraries that it imports, as cpunorm's own parts for them do."""
    code = "".join(text for _, text in program)
    used = r"^\s*(import|from) {0}\b|cpunorm\.{0}\b|cpunorm import .*\b{0}\b"
    return {name for name in OTHERS if re.search(used.format(name), code, re.MULTILINE)}


def with_python():
    for page in PAGES:
        for program in programs(page):
            needed = sorted(imported(program))
            yield pytest.param(page, program, needed, id=f"{page}:{program[0][0]}", marks=[pytest.mark.peer] * bool(needed))


@pytest.mark.parametrize(("page", "program", "needed"), list(with_python()))
def test_python_blocks_run(page, program, needed, tmp_path, monkeypatch):
    for name in needed:
        pytest.importorskip(name, reason=f"{page} needs {name}")
    monkeypatch.chdir(tmp_path)
    known = {}
    for line, text in program:
        exec(compile("\n" * line + text, str(ROOT / page), "exec"), known)


def test_few_blocks_are_not_run():
    marked = [page for page in PAGES for _ in NOT_RUN.finditer(text_of(page)) if page != "CONTRIBUTING.md"]
    assert len(marked) <= MOST_NOT_RUN, marked


@pytest.mark.parametrize("page", [page for page in PAGES if any(True for _ in blocks(page, "sh"))])
def test_commands_exist(page):
    """What a page tells to type: arguments that ``cpunorm`` takes, files and targets that are there."""
    targets = re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE)
    for _, text in blocks(page, "sh"):
        for line in text.splitlines():
            for words in (shlex.split(part, comments=True) for part in re.split(r"&&|\|", line)):
                if words[:1] == ["cpunorm"]:
                    cli._parser().parse_args([word for word in words[1:] if word != "..."])
                elif words[:1] == ["python"] and words[1].endswith(".py"):
                    assert (ROOT / words[1]).exists(), line
                elif words[:1] == ["make"]:
                    assert set(words[1:]) <= set(targets), line


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Inside the repository: to a file, and to a heading in it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text_of(page), flags=re.DOTALL)):
        if re.match(r"\w+:", target):
            continue
        name, _, heading = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if heading:
            found = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in found], f"{page}: {target}"


def names_of(part):
    """`__all__` of a part that needs another library, which may be missing."""
    lines = ast.parse(text_of(f"src/cpunorm/{part}/__init__.py")).body
    (names,) = (line.value for line in lines if isinstance(line, ast.Assign) and line.targets[0].id == "__all__")
    return ast.literal_eval(names)


def test_the_api_reference_has_every_public_name():
    reference = "".join(file.read_text() for file in (ROOT / "docs" / "api").glob("*.rst"))
    there = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)$", reference, re.MULTILINE))
    there |= {name.replace("cpunorm.constants.", "cpunorm.") for name in there}
    public = {f"cpunorm.{name}" for name in (*cn.__all__, *functional.__all__)} | {f"cpunorm.nn.{name}" for name in nn.__all__}
    own = [name for name, value in vars(conventions).items() if inspect.isfunction(value) and value.__module__ == conventions.__name__]
    public |= {f"cpunorm.conventions.{name}" for name in own if name[0] != "_"}
    public |= {f"cpunorm.{part}.{name}" for part in ("dask", "torch") for name in names_of(part)}
    assert not sorted(public - there)
    modules = {f"cpunorm.{name}" for name in ("constants", "conventions", "dask", "functional", "nn", "settings", "torch")} | {"cpunorm"}
    assert not sorted(name for name in there - public - modules if not name.startswith("cpunorm.constants."))
    commands = next(action.choices for action in cli._parser()._actions if isinstance(action.choices, dict))
    assert set(re.findall(r"^\.\. command-help:: (\w+)$", reference, re.MULTILINE)) == set(commands)


FUNCTIONS = [*functional.__all__, "fold_batch_norm", "preprocess"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_name_every_argument(name):
    """In the function's own text, in that of the forward function or of its sibling that it refers to, or in what all share."""
    function = getattr(cn, name)
    said = function.__doc__ + functional.__doc__
    said += "".join(getattr(cn, other).__doc__ for other in re.findall(r"`(?:cpunorm\.)?(\w+)`", function.__doc__) if other in FUNCTIONS)
    assert re.search(r"^    Returns\n    -------$", function.__doc__, re.MULTILINE)
    assert ">>>" not in re.split(r"\n    (?:Examples|Notes)\n", function.__doc__)[0], "an example after Raises is set as an error"
    missing = [argument for argument in inspect.signature(function).parameters if not re.search(rf"\b{argument}\b", said)]
    assert not missing


def module_of(file):
    spec = importlib.util.spec_from_file_location(Path(file).stem, ROOT / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_drawings_are_what_the_script_draws():
    """``python docs/draw.py`` writes them."""
    for name, content in module_of("docs/draw.py").files():
        assert (ROOT / "docs" / "drawings" / name).read_text() == content, name


# ---------------------------------------------------------------- measured tables: their form

tables = module_of("docs/tables.py")
SMALL = (2, 8, 6, 6)


def accuracy(words, _):
    return module_of(words[1]).TABLES[words[2]](SMALL)


def choosing(words, _):
    return module_of(words[1]).table({"8 KB": SMALL, "200 KB": SMALL, "3 MB": SMALL, "26 MB": SMALL, "103 MB": SMALL}, 1)


def digits(words, _):
    pytest.importorskip("sklearn", reason="the table is of examples/digits.py")
    module = module_of(words[1])
    return module.table(module.measure(1, 1))


def cold(words, _):
    return module_of(words[1]).table(lambda code, **_: 0.1)


COMMANDS = {
    "benchmarks/accuracy.py": accuracy,
    "benchmarks/choosing.py": choosing,
    "benchmarks/cold.py": cold,
    "examples/digits.py": digits,
}


def form(lines):
    """The head of a table and the labels of its lines: the cells that hold no measured number."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    head = [re.sub(r"\d+ threads", "N threads", cell) for cell in rows[0]]
    labels = [index for index, cell in enumerate(rows[1]) if cell == "---"] or [0]
    return head, rows[1], [[row[index] for index in labels] for row in rows[2:]]


def all_tables():
    for page in PAGES:
        for command, content in tables.tables(text_of(page)):
            if command.startswith("python "):
                yield pytest.param(command, content, id=f"{page}: {command}")


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")  # PyTorch says that 16 bits beside float32 take its slow path
@pytest.mark.parametrize(("command", "content"), list(all_tables()))
def test_tables_have_the_form_that_their_command_gives(command, content):
    """On small arrays: the same columns and the same lines."""
    pytest.importorskip("torch", reason="the tables have columns of PyTorch")
    words = command.split()
    printed = COMMANDS[words[1]](words, content)
    assert form(content.splitlines()) == form(list(printed))


@pytest.mark.parametrize("page", ["README.md"])
def test_tables_of_compare_have_its_form(page, tmp_path, monkeypatch, capsys):
    """The same columns as ``cpunorm compare --markdown`` gives, and a line for each operation, shape, layout and number of threads."""
    pytest.importorskip("torch", reason="the table has a column of PyTorch")
    from cpunorm.compare import measure

    monkeypatch.setitem(measure.QUICK, "seconds", 0.05)
    monkeypatch.chdir(tmp_path)
    found = [(command, content) for command, content in tables.tables(text_of(page)) if command.startswith("cpunorm compare")]
    assert found
    for command, content in found:
        words = shlex.split(command)[1:]
        asked = cli._parser().parse_args(words)
        shapes = cli.compare._shapes(asked.shape, asked.quick)
        replaced = ("--shape", "--threads")
        small = [word for word, before in zip(words, ["", *words], strict=False) if word not in replaced and before not in replaced]
        assert cli.main([*small, "--quick", "--shape", "2,3,16,16", "--threads", "1"]) == 0
        head, rule, lines = form(capsys.readouterr().out.splitlines())
        assert form(content.splitlines())[:2] == (head, rule)
        assert len(form(content.splitlines())[2]) == len(lines) * len(shapes)
        assert all(any(name in label for name in shapes) for label, *_ in form(content.splitlines())[2])


def test_the_makefile_has_what_is_promised():
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    assert targets >= {"install", "test", "lint", "docs", "bench-quick", "compare", "wheels", "sanitize", "ci"}
    for file in re.findall(r"(?:\.ci|benchmarks|docs)/[\w./-]+", text_of("Makefile")):
        assert (ROOT / file).exists(), file
