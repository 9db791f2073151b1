"""Read and check params.yaml: every configuration error is found before anything runs, and all are reported at once.

`audits:` configures the searches, `repairs:` the repairs (an audit without an entry there ends after its landscape),
and `runner:` where stages run. Each stage depends only on its own groups (see dvc.yaml). The keys of an audit or repair
that dvc.yaml names have no defaults here, because DVC needs them in the file.
"""

from stages.core.environment import DATA
from stages.params.audit import (
    AuditConfig,
    DiscoverConfig,
    GradientConfig,
    LandscapeGates,
    MicroscopicConfig,
    RatingsConfig,
    SpotCheckConfig,
    SummarizeConfig,
)
from stages.params.file import Params, RunnerConfig, load_params, name_error
from stages.params.repair import FeedbackConfig, GateConfig, Gates, RepairConfig, RestructureConfig
from stages.params.strict import Strict, checked, errors_in, parse_yaml, read_bytes, validation_lines
