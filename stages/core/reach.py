"""Find the code that can be reached from a function by reading its source, without importing any of it.

Code is followed definition by definition. A function reaches whatever it names. A class reaches its bases, and those of
its methods and attributes whose names occur in reached code or templates; methods that a library may call always count.
What changes no result is left out: comments, docstrings, annotations of functions, printed text, error messages, and in
which of our modules a definition is.
"""

import ast
import builtins
import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path

Name = tuple[str, str]
"""A module, and the name of a definition in it; "" is the whole module."""

Digests = dict[str, dict[str, str]]
"""Per file path, the reached definitions: name -> digest."""

TABLE = "CATALOGUE"  # a constant of this name is a table of named entries, of which an audit uses some
_DOOR = "faded"
_REST = "*"  # module-level code that defines nothing
# Methods with only these decorators run when called by name; with others they may run at any time.
_CALLED_BY_NAME = frozenset(
    {"property", "cached_property", "classmethod", "staticmethod", "abstractmethod", "override", "setter"}
    | {"contextmanager", "cache", "lru_cache", "no_grad", "inference_mode"}
)
# Library bases that never call a method which only a subclass defines.
_CALL_NOTHING = frozenset({"Protocol", "ABC", "Generic", "NamedTuple", "BaseModel", *vars(builtins)})
_PRINTS = frozenset({"print", "warnings.warn"})
_READ_BY_PYDANTIC = "model_config"
_ENTRY = re.compile(r"(stages)?(\.\w+)+:\w+")  # "module:Class", which is followed where stages use it
_ATTRIBUTES = re.compile(r"\.([A-Za-z_]\w*)")  # attributes used in a template


@dataclass
class CodePart:
    """One definition, or one member of a class.

    digest: hash of its code.
    names: the names it uses, dotted if through a module: "plugins.load".
    attributes: the attribute names it accesses on objects.
    texts: strings in it that may be names.
    imports: its own imports.
    members: for a class, members that count only if they are accessed.
    entries: for a table, its entries.
    bases: for a class, its bases as written.
    is_field: whether it is a field of a block of params.yaml.
    reads_files: whether it reads files of its module's folder.
    """

    digest: str
    names: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    imports: dict[str, Name] = field(default_factory=dict)
    members: "dict[str, CodePart]" = field(default_factory=dict)
    entries: "dict[str, CodePart]" = field(default_factory=dict)
    bases: list[str] = field(default_factory=list)
    is_field: bool = False
    reads_files: bool = False


class _Reader:
    """Reads a definition: its code and what it refers to."""

    def __init__(self, package: str, leave_out: Collection[ast.AST]) -> None:
        self._package, self._leave_out = package, leave_out
        self._written: list[str] = []
        self._part = CodePart("")

    def part(self, *nodes: ast.AST) -> CodePart:
        for node in nodes:
            self._read(node)
        part = self._part
        part.digest = hashlib.sha256("".join(self._written).encode("utf-8", "surrogatepass")).hexdigest()
        part.reads_files = "__file__" in part.names or ("importlib.resources", "files") in part.imports.values()
        return part

    def _read(self, node: ast.AST) -> None:
        if node in self._leave_out or _changes_nothing(node):
            return
        written = self._written
        written.append(type(node).__name__)
        if (dotted := _dotted(node)) is not None:
            self._part.names.add(dotted)
            self._part.attributes.update(dotted.split(".")[1:])
            written.append(f":{dotted};")
            return
        self._note(node)
        for name, value in _fields(node):
            written.append(f"({name}")
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self._read(child)
                else:
                    text = child.partition(":")[2] if isinstance(child, str) and _ENTRY.fullmatch(child) else child
                    written.append(f":{type(child).__name__}{text!r};")
            written.append(")")

    def _note(self, node: ast.AST) -> None:
        part = self._part
        if isinstance(node, ast.Attribute):
            part.attributes.add(node.attr)
        elif isinstance(node, ast.keyword):
            part.texts.add(node.arg or "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            part.texts.add(node.value)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            part.imports |= _imports(node, self._package)
        elif isinstance(node, ast.Call) and _dotted(node.func) in ("getattr", "hasattr"):
            part.attributes.update(_texts(node.args[1:2]))
        elif isinstance(node, ast.MatchClass):
            part.attributes.update(node.kwd_attrs)


def _fields(node: ast.AST) -> Iterator[tuple[str, object]]:
    """Yield the fields of a node, without empty lists, in an order that is the same in every version of Python."""
    left_out = {"ctx", "kind", "type_comment"}
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        left_out.add("exc")
        yield "exc", node.exc.func
    elif isinstance(node, ast.Assert):
        left_out.add("msg")
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        left_out.add("returns")
    elif isinstance(node, ast.arg):
        left_out.add("annotation")
    elif isinstance(node, ast.ImportFrom):
        left_out |= {"module", "level"}  # what it imports is followed, or named if it is a library's
    elif isinstance(node, ast.Call) and _dotted(node.func) == "Field":
        left_out.add("keywords")
        yield "keywords", [keyword for keyword in node.keywords if keyword.arg != "description"]
    for name in sorted(set(node._fields) - left_out):
        value = getattr(node, name, None)
        if value is not None and value != []:
            yield name, value


def _changes_nothing(node: ast.AST) -> bool:
    """Whether a statement only prints something or is a docstring."""
    if not isinstance(node, ast.Expr):
        return False
    value = node.value
    return isinstance(value, ast.Constant) or (isinstance(value, ast.Call) and _dotted(value.func) in _PRINTS)


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value)) is not None:
        return f"{base}.{node.attr}"
    return None


def _texts(nodes: Iterable[ast.AST | None]) -> list[str]:
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def _imports(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, Name]:
    """Return what an import binds: name -> module and the name imported from it, "" for the module itself."""
    if isinstance(node, ast.Import):
        names = {alias.asname or alias.name.partition(".")[0]: alias for alias in node.names}
        return {name: (alias.name if alias.asname else name, "") for name, alias in names.items()}
    module = node.module or ""
    if node.level:
        above = package.split(".")
        module = ".".join([*above[: len(above) - node.level + 1], *([module] if module else [])])
    return {alias.asname or alias.name: (module, alias.name) for alias in node.names}


@dataclass(frozen=True)
class Module:
    """A parsed module.

    name: dotted name.
    path: path of its file.
    shown: the path shown to people.
    ours: whether it belongs to Faded; in other modules everything counts once any definition is reached.
    parts: its definitions by name.
    imports: what its imports bind.
    """

    name: str
    path: Path
    shown: str
    ours: bool
    parts: dict[str, list[CodePart]]
    imports: dict[str, Name]


class _Definitions:
    """The definitions and imports in a module's source.

    Args:
        package: the package that relative imports start from.
        ours: whether it belongs to Faded.
        has_blocks: whether its classes are blocks of params.yaml, whose fields count only if they are accessed.
    """

    def __init__(self, source: bytes, package: str, ours: bool, has_blocks: bool) -> None:
        self._package, self._ours, self._has_blocks = package, ours, has_blocks
        self.parts: dict[str, list[CodePart]] = {}
        self.imports: dict[str, Name] = {}
        try:
            body = ast.parse(source).body
        except (SyntaxError, ValueError):  # importing it reports the error
            self.parts[_REST] = [CodePart(hashlib.sha256(source).hexdigest())]
            return
        for node in body:
            self._take(node)

    def _take(self, node: ast.stmt) -> None:
        names = [_REST]
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.imports |= _imports(node, self._package)
            return
        if _changes_nothing(node) or (self._ours and isinstance(node, ast.If) and _never_runs(node)):
            return
        if isinstance(node, ast.ClassDef):
            names, part = [node.name], self._class(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            leaves = [leaf for target in targets for leaf in _leaves(target)]
            names = [leaf.id if isinstance(leaf, ast.Name) else _REST for leaf in leaves]
            entries = dict(_entries(node.value, named=TABLE in names)) if node.value is not None else {}
            part = self._read(node, leave_out=entries.values())
            part.entries = {name: self._entry(entry) for name, entry in entries.items()}
        else:
            part = self._read(node)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [node.name]
            else:
                self.imports |= part.imports
        for name in names:
            self.parts.setdefault(name, []).append(part)

    def _read(self, *nodes: ast.AST, leave_out: Collection[ast.AST] = ()) -> CodePart:
        return _Reader(self._package, leave_out).part(*nodes)

    def _class(self, node: ast.ClassDef) -> CodePart:
        members: dict[str, list[ast.stmt]] = {}
        checks = []
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                under = [(_dotted(getattr(d, "func", d)) or "").rpartition(".")[2] for d in statement.decorator_list]
                if self._has_blocks and any(name.endswith("_validator") for name in under):
                    checks.append(statement)
                elif not statement.name.startswith("__") and _CALLED_BY_NAME.issuperset(under):
                    members.setdefault(statement.name, []).append(statement)
            elif self._ours and isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                if statement.targets[0].id != _READ_BY_PYDANTIC:
                    members.setdefault(statement.targets[0].id, []).append(statement)
            elif self._has_blocks and isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                members.setdefault(statement.target.id, []).append(statement)
        part = self._read(node, leave_out={*checks, *(one for each in members.values() for one in each)})
        for name, statements in members.items():
            part.members[name] = self._read(*statements)
            part.members[name].is_field = isinstance(statements[0], ast.AnnAssign)
        bases = (base.value if isinstance(base, ast.Subscript) else base for base in node.bases)
        part.bases = [dotted for base in bases if (dotted := _dotted(base)) is not None]
        return part

    def _entry(self, node: ast.expr) -> CodePart:
        part = self._read(node)
        for text in _texts([node]):  # "module:Class", which is imported when needed
            module, _, name = text.partition(":")
            part.imports[name], part.names = (module, name), {name}
        return part


# Tests and single commands hash code several times, in many workspaces, and parsing is slow.
_defined = lru_cache(maxsize=1000)(_Definitions)


def _never_runs(node: ast.If) -> bool:
    """Whether a block is only for type checkers, or for a module run as a command."""
    test = node.test
    return _dotted(test) == "TYPE_CHECKING" or (isinstance(test, ast.Compare) and _dotted(test.left) == "__name__")


def _leaves(target: ast.expr) -> list[ast.expr]:
    inner = target.elts if isinstance(target, ast.Tuple | ast.List) else []
    return [leaf for one in inner for leaf in _leaves(one)] if inner else [target]


def _entries(value: ast.expr, *, named: bool) -> Iterator[tuple[str, ast.expr]]:
    """Yield a table's entries: "module:Class" by name, and if it is `named` TABLE, calls that begin with a name."""
    if isinstance(value, ast.Dict):
        keys, targets = _texts(value.keys), _texts(value.values)
        if keys and len(keys) == len(targets) == len(value.values) and all(t.count(":") == 1 for t in targets):
            yield from zip(keys, value.values, strict=True)
    for inner in ast.walk(value) if named else ():
        for call in inner.elts if isinstance(inner, ast.Tuple) else ():
            for name in _texts(call.args[:1]) if isinstance(call, ast.Call) else ():
                yield name, call


class SourceTree:
    """The modules that can be followed, each read once.

    Args:
        package: the folder `stages`.
        beside: the workspace's root folder, which contains a user's modules.
        passed_over: modules, or "module:name", that change no result.
        blocks: modules whose classes are blocks of params.yaml.
    """

    def __init__(
        self, package: Path, beside: Path = Path(), passed_over: Collection[str] = (), blocks: Collection[str] = ()
    ) -> None:
        self._package, self._beside = package, beside
        self._passed_over, self._blocks = frozenset(passed_over), frozenset(blocks)
        self._modules: dict[str, Module | None] = {}
        self._leads: dict[tuple[str, int], tuple[CodePart, tuple[set[Name], set[str]]]] = {}
        # The module from which users' code imports is beside the package.
        self._homes: dict[str, Path | None] = {package.name: package, _DOOR: package.with_name(_DOOR)}

    def reached(
        self, roots: Iterable[Name], words: Collection[str], leads: Mapping[str, Iterable[Name]]
    ) -> tuple[Digests, set[str]]:
        """Return everything that can be reached from some definitions.

        Args:
            roots: the definitions to start from.
            words: names of the table entries that are used.
            leads: what a "module:name" reaches besides the names in it. Modules outside the package are searched for
                beside params.yaml, and then as Python does.

        Returns:
            The definitions reached, and the keys of `leads` among them.
        """
        for module in (module for lead in leads.values() for module, _ in lead):
            top = module.partition(".")[0]
            if self._home(top) is None and (spec := PathFinder.find_spec(top)) is not None:
                self._homes[top] = Path(next(iter(spec.submodule_search_locations or [str(spec.origin)])))
                self._modules = {name: known for name, known in self._modules.items() if known is not None}
        return _Walk(self, frozenset(words), leads, self._passed_over).run(roots)

    def module(self, name: str) -> Module | None:
        """Return a module by its name; None for a library's module."""
        if name not in self._modules:
            top, *rest = name.split(".")
            home = self._home(top)
            path = home.joinpath(*rest) if home is not None else Path()
            files = [path / "__init__.py", path.with_name(f"{path.name}.py"), path] if home is not None else []
            file = next((file for file in files if file.suffix == ".py" and file.is_file()), None)
            self._modules[name] = self._read(name, file) if file is not None else None
        return self._modules[name]

    def places(self) -> list[Path]:
        """Return where the top-level modules that were looked for are, or would be beside params.yaml, except ours."""
        places = []
        for top, home in self._homes.items():
            if home is None:
                places += [self._beside / f"{top}.py", self._beside / top / "__init__.py"]
            elif top not in (self._package.name, _DOOR):
                places.append(home)
        return places

    def leads(self, module: Module, part: CodePart) -> tuple[set[Name], set[str]]:
        """Return the definitions that a definition's names refer to, and descriptions of those from libraries."""
        key = module.name, id(part)  # modules with the same source share their parts
        if key not in self._leads:
            self._leads[key] = part, self._find_leads(module, part)  # keeps the part, so that its id stays unique
        return self._leads[key][1]

    def _find_leads(self, module: Module, part: CodePart) -> tuple[set[Name], set[str]]:
        targets: set[Name] = set()
        libraries: set[str] = set()
        for name in part.names:
            first, _, rest = name.partition(".")
            if first in part.imports or first in module.imports:
                target, what = part.imports.get(first) or module.imports[first]
                while rest and self._is_module(inner := f"{target}.{what}" if what else target, target, what):
                    target, (what, _, rest) = inner, rest.partition(".")
                targets.add((target, what))
                if self.module(target) is None and self.module(f"{target}.{what}") is None:
                    libraries.add(f"{first} is {target} {what}")
            elif first in module.parts:
                targets.add((module.name, first))
        return targets, libraries

    def _is_module(self, inner: str, module: str, name: str) -> bool:
        known = self.module(module) if name else None
        return self.module(inner) is not None and (known is None or name not in known.parts)

    def _home(self, top: str) -> Path | None:
        """Return the folder or file of a top-level module; None if it is neither ours nor a user's."""
        if top not in self._homes:
            folder, file = self._beside / top, self._beside / f"{top}.py"
            is_package = folder.is_dir() and any(folder.glob("*.py"))
            self._homes[top] = folder if is_package else file if file.is_file() else None
        return self._homes[top]

    def _read(self, name: str, file: Path) -> Module:
        above = Path(*file.parts[: -len(name.split(".")) - (file.name == "__init__.py")])
        ours = name.split(".", maxsplit=1)[0] in (self._package.name, _DOOR)
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        found = _defined(file.read_bytes(), package, ours, ours and name in self._blocks)
        return Module(name, file, file.relative_to(above).as_posix(), ours, found.parts, found.imports)


class _Walk:
    def __init__(
        self,
        source: SourceTree,
        words: frozenset[str],
        leads: Mapping[str, Iterable[Name]],
        passed_over: frozenset[str],
    ) -> None:
        self._source, self._words, self._leads, self._passed_over = source, words, leads, passed_over
        self._found: Digests = {}
        self._used_leads: set[str] = set()
        self._queue: list[tuple[Module, str, CodePart]] = []
        self._seen: set[Name] = set()
        # Accessed names, of methods and of fields, and the members still waiting for theirs.
        self._accessed: tuple[set[str], set[str]] = set(), set()
        self._waiting: tuple[dict[str, list[tuple[Module, str, CodePart]]], ...] = {}, {}

    def run(self, roots: Iterable[Name]) -> tuple[Digests, set[str]]:
        for root in roots:
            self._reach(*root)
        while self._queue:
            self._follow(*self._queue.pop())
        return self._found, self._used_leads

    def _reach(self, module: str, name: str) -> None:
        """Follow a name to the definition, through imports."""
        if (module, name) in self._seen:
            return
        self._seen.add((module, name))
        if (dotted := f"{module}:{name}") in self._leads:
            self._used_leads.add(dotted)
            for lead in self._leads[dotted]:
                self._reach(*lead)
        if module in self._passed_over or dotted in self._passed_over:
            return
        found = self._source.module(module)
        is_module = name and (found is None or (name not in found.parts and name not in found.imports))
        if is_module and self._source.module(f"{module}.{name}") is not None:
            self._reach(f"{module}.{name}", "")
        if found is None:
            return
        whole = not found.ours or name in ("", _REST)
        for one in {**found.parts, **found.imports} if whole else (_REST, name):
            for number, part in enumerate(found.parts.get(one, ())):
                self._add(found, f"{one}#{number}" if number else one, part)
            if one in found.imports and one not in found.parts:
                self._reach(*found.imports[one])

    def _add(self, module: Module, label: str, part: CodePart) -> None:
        here = self._found.setdefault(module.shown, {})
        if label not in here:
            here[label] = part.digest
            self._queue.append((module, label, part))

    def _follow(self, module: Module, label: str, part: CodePart) -> None:
        targets, libraries = self._source.leads(module, part)
        for target in targets:
            self._reach(*target)
        for library in libraries:
            self._found[module.shown][f"{label}: {library}"] = ""
        self._access(part.attributes, part.attributes | part.texts)
        for name, entry in part.entries.items():
            if name in self._words:
                self._add(module, f"{label}[{name}]", entry)
        if part.reads_files and module.ours:
            self._files(module, part.texts)
        every = not module.ours or (bool(part.members) and self._is_called_by_others(module, part))
        for name, member in part.members.items():
            if (every and not member.is_field) or name in self._accessed[member.is_field]:
                self._add(module, f"{label}.{name}", member)
            else:
                self._waiting[member.is_field].setdefault(name, []).append((module, f"{label}.{name}", member))

    def _access(self, attributes: set[str], fields: set[str]) -> None:
        """Add the members whose names are now accessed."""
        for accessed, new, waiting in zip(self._accessed, (attributes, fields), self._waiting, strict=True):
            for name in new - accessed:
                accessed.add(name)
                for one in waiting.pop(name, ()):
                    self._add(*one)

    def _files(self, module: Module, names: Collection[str]) -> None:
        """Add the files other than code in the named folders beside a module."""
        folder = module.path.parent
        for file in (file for name in names for file in (folder / name).rglob("*")):
            if file.is_file() and file.suffix not in (".py", ".pyc"):
                shown = (Path(module.shown).parent / file.relative_to(folder)).as_posix()
                data = file.read_bytes()
                self._found[shown] = {"": hashlib.sha256(data).hexdigest()}
                if file.suffix == ".j2":
                    attributes = set(_ATTRIBUTES.findall(data.decode("utf-8")))
                    self._access(attributes, attributes)

    def _is_called_by_others(self, module: Module, part: CodePart) -> bool:
        """Whether a class also derives from a library's class, which may call any of its methods."""
        for base in part.bases:
            found = self._defined(module, base)
            if found is None and base.rpartition(".")[2] not in _CALL_NOTHING:
                return True
            if found is not None and any(self._is_called_by_others(found[0], one) for one in found[1]):
                return True
        return False

    def _defined(self, module: Module, name: str) -> tuple[Module, list[CodePart]] | None:
        """Return the module and definition of a class; None for a library's class."""
        first, _, rest = name.partition(".")
        if first in module.parts:
            return module, module.parts[first]
        target, what = module.imports.get(first, ("", ""))
        if self._source.module(f"{target}.{what}") is not None:
            target, what = f"{target}.{what}", rest
        there = self._source.module(target)
        return self._defined(there, what or rest) if there is not None else None
