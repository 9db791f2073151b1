"""What only a model behind a URL needs to be asked: which variable holds its key."""

from __future__ import annotations

from pydantic import ValidationError

from flows.init.model import Model
from flows.init.questions import Questions
from stages.errors import UsageError
from stages.params import validation_lines

_NONE = "none"


def ask_key(questions: Questions, model: Model) -> dict[str, str]:
    """Ask for the environment variable with the key; {} for a model that needs none.

    Raises:
        UsageError: when it is no name of a variable, the variable is not set, or the key would travel unencrypted.
    """
    asked = "Environment variable that holds its key, or none"
    name = questions.text("key-env", asked, _NONE, lambda answer: _check(str(model.block["endpoint"]), answer))
    return {} if name == _NONE else {"key_env": name}


def _check(url: str, answer: str) -> None:
    from stages.tasks.endpoint import EndpointConfig

    if answer == _NONE:
        return
    try:
        EndpointConfig(endpoint=url, key_env=answer).key()
    except ValidationError as error:
        raise UsageError(f"--key-env: {'; '.join(validation_lines(error, EndpointConfig))}") from None
    except UsageError as error:
        raise UsageError(str(error).replace("prepare.model.key_env", "--key-env")) from None
