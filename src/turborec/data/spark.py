"""Preparation on Apache Spark, for data that outgrow one machine: the same SQL, the same store to the byte.

Whatever is computed is written to the work folder as Parquet, one file a task, and read again from there: by Spark for
the next step, by this process to write the store. So the work folder must be one that all machines share. Spark's own
settings (`spark-defaults.conf`, PYSPARK_SUBMIT_ARGS, spark-submit) say which machines those are; without them, this one.
"""

import logging
import os
import re
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from itertools import count
from os.path import normpath
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from turborec.data.engine import BATCH, File, Part, mistaken
from turborec.data.schema import LINE
from turborec.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

SETTINGS = {
    "spark.sql.ansi.enabled": "true",  # what overflows or cannot be cast fails
    "spark.sql.ansi.doubleQuotedIdentifiers": "true",
    "spark.sql.caseSensitive": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.variable.substitute": "false",  # ${…} in a text is what it says
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
}
"""What makes Spark read the SQL as DuckDB does, and what would make it lose rows; of this session alone."""

# Spark's times have a zone only where they have seconds.
FUNCTIONS = (
    r"regexp_full_match(x STRING, pattern STRING) RETURNS BOOLEAN RETURN x RLIKE concat('\\A(?:', pattern, ')\\z')",
    "isfinite(x DOUBLE) RETURNS BOOLEAN RETURN abs(x) < CAST('Infinity' AS DOUBLE)",
    "divide(x BIGINT, y BIGINT) RETURNS BIGINT RETURN x DIV y",
    "instant_us(x STRING) RETURNS BIGINT RETURN unix_micros(TRY_CAST("
    "regexp_replace(x, '^(.{10}[T ][0-9]{2}:[0-9]{2})(Z|[+-].*)$', '$1:00$2') AS TIMESTAMP))",
)

PLACE_BITS = 33
"""`monotonically_increasing_id` is the number of the task above these bits, and that of its row in them."""

ADDRESS, BASE = "address of the file", "base of the file"
"""Columns of the table that tells each file of a relation apart."""

LEAST_MB = 512
"""Below which Java's part of Spark does not start."""


class Spark:
    """On the machines of a Spark context: the one there is, or one made now and stopped at the end."""

    def __init__(self, work: Path, memory_mb: int) -> None:
        """`work` is an empty folder, `memory_mb` what the driver may use, which without a cluster is all there is."""
        self._work = work.absolute()
        self._numbers = count()
        self._folders: dict[str, Path] = {}
        running = _running()
        self._own = running is None
        self._spark = (running or _started(self._work, memory_mb)).newSession()
        try:
            for name, value in SETTINGS.items():
                self._spark.conf.set(name, value)
            for function in FUNCTIONS:
                self._spark.sql(f"CREATE TEMPORARY FUNCTION {function}")
            self._require_shared()
        except BaseException:
            self.close()
            raise

    def stage(self, name: str, columns: str, parts: Iterable[Part]) -> None:
        """Write the rows that come from `rows` to one file for each query and set of columns; then check all of them."""
        import pyarrow.parquet as pq

        writers: dict[tuple[str, ...], pq.ParquetWriter] = {}
        written: dict[tuple[str, ...], Path] = {}
        alike: dict[tuple[Any, ...], list[File]] = {}
        seen: Counter[Path] = Counter()
        with ExitStack() as stack:
            for part in parts:
                if isinstance(part.rows, File):
                    _require_names(part.rows.columns)
                    seen[part.rows.path] += 1  # a relation holds a file once
                    alike.setdefault((part.query, *_types(part.rows), seen[part.rows.path]), []).append(part.rows)
                    continue
                _require_names(part.rows.column_names)
                group = (part.query, *part.rows.column_names)
                if group not in writers:
                    written[group] = self._folder() / "rows.parquet"
                    written[group].parent.mkdir()
                    writers[group] = stack.enter_context(pq.ParquetWriter(written[group], _schema(part.rows)))
                writers[group].write_table(part.rows.cast(_schema(part.rows)))
        with _mendable():
            rows = [(query, self._spark.read.parquet(_address(path))) for (query, *_), path in written.items()]
            rows += [(query, self._scan(files)) for (query, *_), files in alike.items()]
            if rows:
                self._keep(name, _together(map(self._checked, rows)))

    def reads(self, path: Path, columns: Sequence[str]) -> bool:
        """Parquet whose columns are whole numbers or text: of the other types each has a text of its own in Java."""
        import pyarrow.parquet as pq

        if path.name.startswith(("_", ".")) or ":" in path.name:
            return False  # hidden to Spark, or no path to it
        with path.open("rb") as file:
            if file.read(4) != b"PAR1":
                return False
        schema = pq.read_schema(path)
        names = [name.casefold() for name in schema.names]
        distinct = len(names) == len(set(names)) and "_metadata" not in names
        return distinct and all(_is_plain(schema.field(name).type) for name in columns)

    def table(self, name: str, query: str) -> None:
        """Compute it and keep it in files."""
        self._keep(name, self._spark.sql(query))

    def view(self, name: str, query: str) -> None:
        """As the engine says."""
        self._spark.sql(query).createOrReplaceTempView(name)

    def ranks(self, name: str, query: str, by: str, column: str, first: int) -> None:
        """By a sort of all tasks together, since a window over all rows would be the work of one."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        ordered = f"SELECT {by}, monotonically_increasing_id() AS _place FROM (SELECT * FROM ({query}) ORDER BY {by})"
        self.table("_ordered", ordered)
        shifts: dict[str, list[int]] = {"task": [], "shift": []}
        for path in _files(self._folders["_ordered"]):
            task = _task(path)
            shifts["task"].append(task)
            shifts["shift"].append(first - (task << PLACE_BITS))
            first += int(pq.read_metadata(path).num_rows)
        self.register("_tasks", pa.table(shifts, schema=pa.schema({"task": pa.int64(), "shift": pa.int64()})))
        rank = f"CAST(_place + shift AS INTEGER) AS {column}"
        self.table(name, f"SELECT {by}, {rank} FROM _ordered JOIN _tasks ON task = shiftright(_place, {PLACE_BITS})")
        self.drop("_ordered", "_tasks")

    def register(self, name: str, table: "pa.Table") -> None:
        """By way of a file."""
        import pyarrow.parquet as pq

        folder = self._folder()
        folder.mkdir()
        pq.write_table(table, folder / "rows.parquet")
        self._open(name, folder, self._spark.read.parquet(_address(folder)))

    def drop(self, *names: str) -> None:
        """Forget them and delete their files."""
        for name in names:
            self._spark.catalog.dropTempView(name)
            if name in self._folders:
                shutil.rmtree(self._folders.pop(name))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """As the engine says."""
        return [tuple(row) for row in self._spark.sql(query).collect()]

    def batches(self, query: str) -> "Iterator[pa.RecordBatch]":
        """The rows by way of files, whose order is that of the tasks and so of the query."""
        import pyarrow.parquet as pq

        folder = self._write(self._spark.sql(query))
        for path in _files(folder):
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(BATCH)
        shutil.rmtree(folder)

    def close(self) -> None:
        """Forget the tables, and stop the context where it was made here."""
        self.drop(*self._folders)
        if self._own:
            self._spark.stop()
            _end_java()

    def _checked(self, stated: tuple[str, Any]) -> Any:
        """What a query makes of rows."""
        query, rows = stated
        rows.createOrReplaceTempView("run")
        return self._spark.sql(query)

    def _scan(self, files: list[File]) -> Any:
        """The rows of files of the same columns as `rows` gives them, text beside their positions: one relation for all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        first, addresses = files[0], [_address(file.path) for file in files]
        relation = self._spark.read.schema(self._spark.read.parquet(addresses[0]).schema).parquet(*addresses)
        by_path = {normpath(file.path.absolute()): file for file in files}
        # By what Spark calls them beside each row, where a blank and the like are written as numbers.
        paths = [re.sub("^file:/+", "/", address) for address in relation.inputFiles()]
        found = [by_path[normpath(unquote(path))] for path in paths]
        told = {ADDRESS: paths, BASE: [file.base for file in found]}
        told |= {name: [file.constants[name] for file in found] for name in first.constants}
        (folder := self._folder()).mkdir()
        pq.write_table(pa.table(told), folder / "rows.parquet")
        facts = self._spark.read.parquet(_address(folder)).hint("broadcast")
        address = f"regexp_replace(_metadata.file_path, '^file:/+', '/') AS {_quoted(ADDRESS)}"
        texts = (f"validate_utf8(CAST({_quoted(name)} AS STRING)) AS {_quoted(name)}" for name in first.columns)
        rows = relation.selectExpr(address, f"_metadata.row_index + 1 AS {_quoted(LINE)}", *texts)
        base = f"coalesce({_quoted(BASE)}, CAST(raise_error({_quoted(ADDRESS)}) AS BIGINT))"  # no row is ever lost
        kept = map(_quoted, (*first.columns, *first.constants))
        return rows.join(facts, ADDRESS, "left").selectExpr(f"{base} + {_quoted(LINE)} AS {_quoted(LINE)}", *kept)

    def _keep(self, name: str, frame: Any) -> None:
        folder = self._write(frame)
        self._open(name, folder, self._spark.read.schema(frame.schema).parquet(_address(folder)))

    def _open(self, name: str, folder: Path, frame: Any) -> None:
        """Give a folder's rows a name, and delete those that had it."""
        self.drop(name)
        frame.createOrReplaceTempView(name)
        self._folders[name] = folder

    def _write(self, frame: Any) -> Path:
        folder = self._folder()
        frame.write.parquet(_address(folder, pattern=False))
        return folder

    def _folder(self) -> Path:
        return self._work / f"spark-{next(self._numbers)}"

    def _require_shared(self) -> None:
        """Where other machines write to disks of their own, what they write would be missing without a word."""
        import pyarrow.parquet as pq

        context = self._spark.sparkContext
        if context.master.startswith("local["):
            return
        rows = 4 * context.defaultParallelism
        folder = self._write(self._spark.range(0, rows, 1, rows))
        found = sum(pq.read_metadata(path).num_rows for path in _files(folder))
        if found != rows:
            raise UserError(
                f"Not every machine of {context.master} shares the folder {self._work}: {found} of {rows} rows written "
                f"there came back. Name a folder on a disk that all of them share: --home."
            )
        shutil.rmtree(folder)


def _running() -> Any:
    """The session that somebody else has made, if any."""
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise UserError("prepare.engine=spark needs PySpark: pip install 'turborec[spark]'.") from error
    if "SPARK_REMOTE" in os.environ:
        raise UserError(
            "prepare.engine=spark needs a Spark of its own or a classic cluster, not Spark Connect: unset SPARK_REMOTE."
        )
    return SparkSession.getActiveSession()


def _started(work: Path, memory_mb: int) -> Any:
    from pyspark.errors import PySparkRuntimeError
    from pyspark.logger import PySparkLogger
    from pyspark.sql import SparkSession

    _require_java()
    if memory_mb < LEAST_MB:
        raise UserError(f"Spark needs {LEAST_MB} MB of prepare.memory_mb at least, got {memory_mb}.")
    settings: dict[str, str | bool | int | float | None] = {
        "spark.app.name": "turborec",
        "spark.driver.memory": f"{memory_mb}m",
        "spark.local.dir": str(work / "spill"),
        "spark.log.level": "FATAL",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    # Every error would be written out as a page of JSON beside being raised.
    PySparkLogger.getLogger("SQLQueryContextLogger").setLevel(logging.CRITICAL)
    interrupted = signal.getsignal(signal.SIGINT)
    try:
        session = SparkSession.builder.config(map=settings).getOrCreate()
    except PySparkRuntimeError as error:
        raise UserError(
            f"Spark did not start: {error} It needs Java 17 or 21, as `java` or in the folder that JAVA_HOME names, and "
            f"settings (PYSPARK_SUBMIT_ARGS, spark-defaults.conf) that it understands; its own words are above."
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupted)  # Spark's handler would outlive it
    return session


def _end_java() -> None:
    """Java would keep its memory as long as this process lives; Spark has no other way to end it."""
    from pyspark import SparkContext

    gateway = SparkContext._gateway
    if gateway is not None and gateway.proc is not None:  # there is no process where spark-submit has started this one
        SparkContext._gateway = SparkContext._jvm = None
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait()


def _require_java() -> None:
    home = os.environ.get("JAVA_HOME")
    if not (Path(home, "bin", "java").is_file() if home else shutil.which("java")):
        place = f"the folder that JAVA_HOME names, {home}, has no bin/java" if home else "no `java` is found"
        raise UserError(
            f"prepare.engine=spark needs a Java runtime, but {place}: install Java 17 or 21 (Debian and Ubuntu: "
            f"openjdk-17-jre-headless) or set JAVA_HOME to its folder."
        )


def _require_names(names: Iterable[str]) -> None:
    for name in names:
        if name.endswith("\\"):  # Spark takes it for the escape of the quote behind it
            raise UserError(f"Spark cannot read a column whose name ends in a backslash, such as {name!r}: rename it.")


def _schema(rows: "pa.Table") -> "pa.Schema":
    """The types of rows that come from `rows`: a position and texts, even where a run has nothing but nulls."""
    import pyarrow as pa

    return pa.schema([(name, pa.int64() if name == LINE else pa.large_string()) for name in rows.column_names])


def _types(file: File) -> list[tuple[str, str]]:
    """The columns of a Parquet file that are wanted of it, and how they are written."""
    import pyarrow.parquet as pq

    schema = pq.read_schema(file.path)
    return [(name, str(schema.field(name).type)) for name in file.columns]


def _is_plain(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    types = pa.types
    return bool(types.is_signed_integer(kind) or types.is_string(kind) or types.is_large_string(kind))


def _together(frames: Iterable[Any]) -> Any:
    """The rows of all of them, which have the same columns."""
    return reduce(lambda one, other: one.unionAll(other), frames)


@contextmanager
def _mendable() -> Iterator[None]:
    """Failures by the words of a query, the values it meets or the files it reads, as the user's to mend."""
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JJavaError) as error:
        told = re.search(r"\[[A-Z0-9_.]+\] [^\n]*", str(error))  # a page of Java's follows
        reason = told[0] if told else str(error)
        if "INVALID_UTF8_STRING" in reason or "FAILED_READ_FILE" in reason:
            raise UserError(f"A Parquet file cannot be read, by every machine where there are several: {reason}") from error
        if re.search(r"SQLSTATE: (22|42)", str(error)):  # of data and of syntax
            raise mistaken(reason) from error
        raise


def _address(path: Path, pattern: bool = True) -> str:
    """A path for Spark, which would take brackets and stars for a pattern where it reads, and other disks for the default."""
    return "file://" + (re.sub(r"([*?{}\[\]\\])", r"\\\1", str(path.absolute())) if pattern else str(path.absolute()))


def _files(folder: Path) -> list[Path]:
    """What the tasks wrote, in their order."""
    return sorted(folder.glob("part-*.parquet"), key=lambda path: (_task(path), path.name))


def _task(path: Path) -> int:
    return int(path.name.split("-")[1])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
