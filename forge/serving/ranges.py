"""What each sampling option may be, wherever one is asked for. What they mean is said at forge.serving.contract.Sampling."""

from typing import Annotated

from pydantic import Field

Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=0, lt=2**31)]
MinP = Annotated[float, Field(ge=0, le=1)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=1e6)]
Penalty = Annotated[float, Field(ge=-2, le=2)]  # presence and frequency
MaxTokens = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
