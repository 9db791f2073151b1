"""The tables of a new database of Prefect, made in a quarter of Prefect's time: `python -m flows.server.tables FILE`.

Prefect's asynchronous driver hands each of 34,000 calls of its migrations to another thread and back.
"""

import sys
import traceback
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory


def make_tables(database: Path) -> bool:
    """Make a SQLite database with Prefect's tables, whole or not at all.

    Returns:
        False if it failed, and printed why; Prefect's server can still make them itself.
    """
    try:
        # In its own folder, as a journal that a killed process left beside it would be applied to it.
        with TemporaryDirectory(prefix="new-", dir=database.parent) as folder:
            _migrate(made := Path(folder, database.name))
            if not database.exists():  # another server was not faster
                made.rename(database)
    except Exception:  # whatever another version of Prefect or Alembic does
        traceback.print_exc()
        return False
    return True


def _migrate(database: Path) -> None:
    import sqlalchemy
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory
    from prefect.server.database.alembic_commands import alembic_config
    from prefect.server.database.orm_models import AioSqliteORMConfiguration, Base

    config = alembic_config()
    script = ScriptDirectory.from_config(config)
    script.version_locations = [str(AioSqliteORMConfiguration().versions_dir)]
    engine = sqlalchemy.create_engine(f"sqlite:///{database}")
    with (
        warnings.catch_warnings(action="ignore"),
        engine.connect() as connection,
        EnvironmentContext(config, script, fn=lambda now, _: script._upgrade_revs("heads", now)) as context,
    ):
        # As Prefect's own env.py does.
        context.configure(
            connection, target_metadata=Base.metadata, render_as_batch=True, transaction_per_migration=True
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


if __name__ == "__main__":
    raise SystemExit(not make_tables(Path(sys.argv[1])))
