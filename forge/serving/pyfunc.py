"""The model that MLflow serves, as code: MLflow stores this file beside the weights and runs it to load them. No pickle.

    mlflow models serve -m models:/NAME@champion --env-manager local -h 127.0.0.1 -p 5000

Chat and completion, in and out in the OpenAI form:

    curl http://127.0.0.1:5000/invocations -H 'Content-Type: application/json' \\
         -d '{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}'
    curl http://127.0.0.1:5000/invocations -H 'Content-Type: application/json' \\
         -d '{"prompt": "Once upon", "max_tokens": 20, "temperature": 0}'

Requests that come at the same time are computed together. One that MLflow has given up (MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT) stops.

MLflow's own forms, answered by {"predictions": [one text_completion object a row]}:

    curl http://127.0.0.1:5000/invocations -H 'Content-Type: application/json' \\
         -d '{"inputs": {"prompt": ["Once upon", "There was"]}, "params": {"max_tokens": 20, "seed": 7}}'
    curl http://127.0.0.1:5000/invocations -H 'Content-Type: application/json' \\
         -d '{"dataframe_split": {"columns": ["prompt"], "data": [["Once upon"]]}, "params": {"max_tokens": 20}}'

A mistake in the body is a 400 with one sentence. Two things MLflow decides before this code is asked: a parameter of a wrong type
gets MLflow's own, longer message (so `stop` has to be a list here), and an unknown key inside "params" is dropped. `logprobs`, `echo`,
`n` and tools go into the body or a row, not into "params": their types differ between chats and completions.
"""

import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.pyfunc import PythonModel


def _has_serving(spec: Any) -> bool:
    return spec is not None and any(Path(place, "serving", "engine.py").is_file() for place in spec.submodule_search_locations or ())


def _settle_import_path() -> None:
    """Use the copy of forge that lies beside this file only where no other is importable.

    MLflow puts that copy, which has the serving code alone, in front of sys.path. There it would hide an installed forge from the
    rest of the process.
    """
    copy = Path(__file__).resolve().parent / "code"
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != copy]
    if not _has_serving(importlib.util.find_spec("forge")):
        sys.path.insert(0, str(copy))


_settle_import_path()

from forge.errors import ServingError  # noqa: E402
from forge.serving.engine import GenerationThread, Ticket  # noqa: E402
from forge.serving.faults import ModelFailed, ShuttingDown, TimedOut  # noqa: E402
from forge.serving.protocol import Request, answer, parse  # noqa: E402


class Refused(MlflowException):
    """The sentence alone, with 400 for a user's mistake. MLflow would put the whole request body in front of it."""

    def __init__(self, sentence: str, error_code: int = INVALID_PARAMETER_VALUE):
        super().__init__(sentence, error_code=error_code)
        self.sentence = sentence

    def serialize_as_json(self) -> str:
        return json.dumps({**json.loads(super().serialize_as_json()), "message": self.sentence})


class ForgeModel(PythonModel):
    def load_context(self, context: Any) -> None:
        """Load the model folder context.artifacts["model"] into a thread of its own."""
        self.thread = GenerationThread(context.artifacts["model"])

    def predict(self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """One answer for a single body, a list of answers for rows. Raises Refused.

        `model_input` is whatever _rows takes; of the types that MLflow doesn't check or warn of, the one named is the nearest.
        """
        rows, single = _rows(model_input)
        tickets: list[list[Ticket]] = []
        try:
            requests = [_parsed({**(params or {}), **row}) for row in rows]
            for request in requests:
                tickets.append([self.thread.submit(*job, _time_limit_s()) for job in request.jobs])
            name, form = self.thread.folder.name, self.thread.format
            completed = [[ticket.result() for ticket in each] for each in tickets]
            answers = [answer(request, done, name, form) for request, done in zip(requests, completed, strict=True)]
        except ServingError as error:
            raise Refused(str(error), _code(error)) from error
        finally:
            for ticket in itertools.chain(*tickets):
                ticket.cancel()  # those still at work when one failed
        return answers[0] if single else answers


def _code(error: ServingError) -> int:
    if isinstance(error, TimedOut | ShuttingDown):
        return int(TEMPORARILY_UNAVAILABLE)
    return int(INTERNAL_ERROR if isinstance(error, ModelFailed) else INVALID_PARAMETER_VALUE)


def _parsed(body: dict[str, Any]) -> Request:
    request = parse(body)
    if request.stream:
        raise ServingError("`stream`: this route can't stream, leave it out")
    return request


def _time_limit_s() -> float | None:
    """After this MLflow's server has told the client 504, so that going on is of no use. It sets the variable in its own process."""
    limit = os.environ.get("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT")
    return float(limit) if limit else None


def _rows(model_input: Any) -> tuple[list[dict[str, Any]], bool]:
    """The request bodies in what MLflow hands over (a dict, a DataFrame, an array, a list, a text), and whether it is a single one."""
    if isinstance(model_input, pandas.DataFrame):  # where a cell without a value is NaN
        records = model_input.to_dict(orient="records")
        return [{str(key): value for key, value in row.items() if value == value} for row in records], False
    data = _plain(model_input)
    if isinstance(data, str):
        return [{"prompt": data}], True
    if isinstance(data, list):
        return [row if isinstance(row, dict) else {"prompt": row} for row in data], False
    if not isinstance(data, Mapping):
        raise Refused(f"the input has to be an object with `prompt` or `messages`, got {type(data).__name__}")
    columns = {str(key): _plain(value) for key, value in data.items()}
    prompts = columns.get("prompt")
    if not isinstance(prompts, list) or all(isinstance(each, int) for each in prompts):  # one prompt, as text or as token ids
        return [columns], True
    return [_row(columns, index) for index in range(len(columns["prompt"]))], False


def _row(columns: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Row `index` of a table whose columns are as long as `prompt`, or one value for all rows."""
    rows = len(columns["prompt"])
    for name, values in columns.items():
        if isinstance(values, list) and len(values) != rows:
            raise Refused(f"`{name}` has {len(values)} values, but `prompt` has {rows}: send one for each row")
    return {name: values[index] if isinstance(values, list) else values for name, values in columns.items()}


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value  # numpy's arrays and scalars


set_model(ForgeModel())
