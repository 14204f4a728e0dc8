"""The documentation: a site that builds, links that lead somewhere, commands that exist."""

import ast
import collections
import doctest
import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import markdown_it
import pytest
from absl import flags

import tf_lans
import tfrecords
from official_bert import configuration, experiments

ROOT = pathlib.Path(__file__).resolve().parents[1]
HOOKS = ROOT / "docs" / "hooks"
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "examples/*.md")
    for path in ROOT.glob(pattern)
)
PAGES = [name for name in DOCUMENTS if name.startswith("docs/")]
PACKAGES = ("tf_lans", "tfrecords", "official_bert")
GITHUB = markdown_it.MarkdownIt("commonmark").enable("table")
# A site must build where TensorFlow is not installed; None makes an import of it fail.
BUILD = "import sys; sys.modules['tensorflow'] = None; import mkdocs.__main__ as m; m.cli()"


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


# What GitHub makes of a document.


def tokens(document: str) -> Iterator[Any]:
    for token in GITHUB.parse(read(document)):
        yield token
        yield from token.children or ()


def anchors(document: str) -> set[str]:
    """The ids that GitHub gives the headings, and those that are written out."""
    blocks = GITHUB.parse(read(document))
    found: collections.Counter[str] = collections.Counter()
    ids = set(re.findall(r'<a id="([^"]+)"', read(document)))
    for token, inline in zip(blocks, blocks[1:], strict=False):
        if token.type != "heading_open":
            continue
        text = "".join(part.content for part in inline.children or ())
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        ids.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return ids


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_into_the_tree_lead_somewhere(document: str) -> None:
    links = [token.attrs.get("href") or token.attrs.get("src") for token in tokens(document)]
    for link in filter(None, links):
        if re.match(r"\w+:", link):
            assert link.startswith("https://"), link
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / document).parent / target if target else ROOT / document
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(str(path.resolve().relative_to(ROOT))), link


def test_anchors_are_githubs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "a.md").write_text("# A `b_c` - d!\n\n# Same\n\n# [Same](x)\n\n```\n# code\n```\n")
    assert anchors("a.md") == {"a-b_c---d", "same", "same-1"}


# The site.


class Elements(HTMLParser):
    """Counts the elements of a page's text, and collects its ids and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()
        self.ids: set[str] = set()
        self.loaded: list[str] = []
        self.texts: list[str] = []
        self._in_text = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.ids.add(given["id"] or "")
        if tag == "article":
            self._in_text = True
        if self._in_text:
            self.counts[tag] += 1
        if tag in ("script", "img", "iframe", "source"):
            self.loaded.append(given.get("src") or "")
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(given.get("href") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "article":
            self._in_text = False

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-c", BUILD, "build", "--strict", f"--site-dir={folder}"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "Documentation built" in built.stderr  # with less of a log, warnings do not count
    return folder


@pytest.fixture(scope="module")
def pages(site: pathlib.Path) -> dict[str, Elements]:
    """Every page of the site, by its path."""
    found = {}
    for path in sorted(site.rglob("*.html")):
        elements = Elements()
        elements.feed(path.read_text(encoding="utf-8"))
        found[path.relative_to(site).as_posix()] = elements
    return found


def test_the_site_has_every_document(pages: dict[str, Elements]) -> None:
    expected = {name.removeprefix("docs/").replace(".md", ".html") for name in PAGES}
    assert expected <= set(pages)


def test_the_site_loads_nothing_from_elsewhere(
    site: pathlib.Path, pages: dict[str, Elements]
) -> None:
    for name, page in pages.items():
        assert [url for url in page.loaded if "//" in url] == [], name
    for path in site.rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", path.read_text()), path


def test_the_makefile_builds_the_same_site() -> None:
    (recipe,) = re.findall(r"(?m)^docs: .*\n((?:\t.*\n)+)", read("Makefile"))
    assert "-m mkdocs build --strict\n" in recipe
    assert "site_dir: build/site" in read("mkdocs.yml")


@pytest.mark.parametrize("document", [name for name in PAGES if "/reference/" not in name])
def test_the_site_shows_what_github_shows(document: str, pages: dict[str, Elements]) -> None:
    # Python-Markdown wants blank lines and indentation in places where GitHub does not.
    opened = collections.Counter(
        token.tag if token.type.endswith("_open") else token.type for token in tokens(document)
    )
    counts = pages[document.removeprefix("docs/").replace(".md", ".html")].counts
    for tag in ("h1", "h2", "h3", "li", "ul", "ol", "table", "tr", "strong"):
        assert counts[tag] == opened[tag], tag
    assert counts["pre"] == opened["fence"] + opened["code_block"]
    assert counts["img"] == opened["image"]


# Names.


def public_names(path: pathlib.Path) -> Iterator[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        is_definition = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        if is_definition and not node.name.startswith("_"):
            yield node.name


@pytest.mark.parametrize("module", sorted((ROOT / "tf_lans").glob("*.py")), ids=lambda at: at.stem)
def test_every_public_name_of_tf_lans_is_there(
    module: pathlib.Path, pages: dict[str, Elements]
) -> None:
    ids = pages["reference/tf_lans.html"].ids | pages["reference/tf_lans_modules.html"].ids
    expected = {f"tf_lans.{module.stem}.{name}" for name in public_names(module)}
    assert expected - ids == set()


def test_the_packages_names_are_there(pages: dict[str, Elements]) -> None:
    for package in (tf_lans, tfrecords):
        page = pages[f"reference/{package.__name__}.html"]
        text = " ".join(page.texts)
        for name in package.__all__:
            assert re.search(rf"\b{package.__name__}\.(\w+\.)?{name}\b", text), name


def test_what_documents_import_is_there(pages: dict[str, Elements]) -> None:
    shown = set().union(*(page.ids for name, page in pages.items() if "reference/" in name))
    imported = {
        f"{package}.{name.strip()}"
        for document in PAGES
        for package, names in re.findall(
            r"(?m)^(?:>>> )?from (official_bert) import ([\w, ]+)$", read(document)
        )
        for name in names.split(",")
    }
    assert imported and imported - shown == set()


def test_published_recipes_are_there(pages: dict[str, Elements]) -> None:
    expected = {"tf_lans.recipes.LANS_96K_33K", "tf_lans.recipes.LAMB_64K_32K"}
    assert expected <= pages["reference/tf_lans.html"].ids


# Commands.


@pytest.fixture(scope="module")
def commands() -> dict[str, dict[str, Any]]:
    """Docstring and flags of every command of the tree, as the site gets them."""
    command_line = [sys.executable, HOOKS / "command_flags.py", *PACKAGES, "benchmarks", "examples"]
    return json.loads(subprocess.run(command_line, check=True, stdout=subprocess.PIPE).stdout)


def test_every_command_is_on_the_site(
    commands: dict[str, dict[str, Any]], pages: dict[str, Elements]
) -> None:
    text = {name: " ".join(pages[f"reference/{name}.html"].texts) for name in PACKAGES}
    for name, command in commands.items():
        package = name.split(".")[0]
        if package not in PACKAGES or not command["flags"]:
            continue
        for flag in command["flags"]:
            shown = f"--[no]{flag['name']}" if flag["boolean"] else f"--{flag['name']}"
            assert shown in text[package], f"{name} {shown}"


def test_the_sites_flags_are_those_that_the_commands_parse(
    commands: dict[str, dict[str, Any]],
) -> None:
    checked = 0
    for name, command in commands.items():
        if name.split(".")[0] not in PACKAGES[1:] or not command["flags"]:
            continue
        path = ROOT / name.replace(".", "/")
        module = importlib.import_module(f"{name}.__main__" if path.is_dir() else name)
        assert isinstance(module.FLAGS, flags.FlagValues)
        shown = {flag["name"]: flag for flag in command["flags"]}
        assert list(shown) == list(module.FLAGS), name
        for flag in (module.FLAGS[each] for each in module.FLAGS):
            said = shown[flag.name]
            assert said["help"] == " ".join((flag.help or "").split())
            assert said["choices"] == list(getattr(flag.parser, "enum_values", None) or [])
            assert said["boolean"] == bool(flag.boolean)
            if said["default"] not in (None, "all cores"):
                assert said["default"] == str(flag.default_as_str).strip("'")
            checked += 1
    assert checked > 100


def shell_lines(document: str) -> Iterator[str]:
    """The commands of a document's blocks, each on one line."""
    for token in GITHUB.parse(read(document)):
        if token.type == "code_block" or (
            token.type == "fence" and token.info.strip() in ("", "sh", "bash")
        ):
            yield from token.content.replace("\\\n", "").splitlines()


def calls(document: str) -> Iterator[tuple[str, list[str]]]:
    """What is run, a module or a script, and its arguments."""
    for line in shell_lines(document):
        if not re.search(r"\bpython (-m [a-z]|\S+\.py)", line):
            continue
        words = iter(shlex.split(line.removesuffix("&& break"), comments=True))
        for word in words:
            if word == "python":
                break
        name = next(words)
        yield (next(words) if name == "-m" else name), list(words)


def unknown_flags(
    name: str, arguments: list[str], commands: dict[str, dict[str, Any]]
) -> Iterator[str]:
    known = {flag["name"]: flag["boolean"] for flag in commands[name]["flags"]}
    known |= {"help": True, "flagfile": False}
    for position, argument in enumerate(arguments):
        if argument == "--":
            if name == "official_bert.launch":
                started = [each for each in arguments[:position] if each.startswith("--command=")]
                worker = started[0].split("=")[1] if started else "official_bert.train"
                yield from unknown_flags(worker, arguments[position + 1 :], commands)
            return
        if argument in ("|", ">", "&&", "||", ";"):
            return
        if argument.startswith("--"):
            flag = argument.removeprefix("--").split("=")[0]
            if flag not in known and known.get(flag.removeprefix("no")) is not True:
                yield f"{name} {argument}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_have_the_flags_that_are_shown(
    document: str, commands: dict[str, dict[str, Any]]
) -> None:
    for name, arguments in calls(document):
        assert name in commands, name
        assert list(unknown_flags(name, arguments, commands)) == []


def overrides(document: str) -> Iterator[tuple[str, str]]:
    """A recipe and what the document changes in it, on a command line or as YAML."""
    for name, arguments in calls(document):
        if not name.startswith("official_bert."):
            continue
        given = dict(each.removeprefix("--").split("=", 1) for each in arguments if "=" in each)
        recipe = given.get("config_file", given.get("phase1", ""))
        if "params_override" in given and "..." not in given["params_override"]:
            yield (
                recipe,
                re.sub(r"\$[A-Z_]+", "a", given["params_override"]).replace("$rate", "0.1"),
            )
    for token in GITHUB.parse(read(document)):
        if token.type == "fence" and token.info == "yaml" and token.content.startswith("trainer:"):
            yield "", token.content


@pytest.mark.parametrize("document", DOCUMENTS)
def test_recipes_have_the_fields_that_are_shown(document: str) -> None:
    experiments.register()
    for recipe, changes in overrides(document):
        packaged = pathlib.Path(configuration.CONFIG_FOLDER, recipe).is_file()
        base = recipe if packaged else "bert_base_64dev_phase1.yaml"
        configuration.load(experiments.PRETRAINING, [base], changes)


def test_a_wrong_flag_is_seen(commands: dict[str, dict[str, Any]]) -> None:
    launch = [
        "--num_workers=2",
        "--command=official_bert.pretrain",
        "--",
        "--phase=a",
        "--phase1=b",
    ]
    assert list(unknown_flags("official_bert.launch", launch, commands)) == [
        "official_bert.pretrain --phase=a"
    ]
    build = ["--nolower_case", "--noinput", "--records=dynamic"]
    assert list(unknown_flags("tfrecords.build", build, commands)) == ["tfrecords.build --noinput"]


@pytest.mark.parametrize("hook", ["source_links", "command_pages"])
def test_the_hooks_examples(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HOOKS))
    result = doctest.testmod(importlib.import_module(hook))
    assert result.attempted and not result.failed
