"""Teachers that choose the tasks of a student: automatic curriculum learning. Names are resolved on first use."""

from jaxlab.lazy import lazy_names

_EXPORTS = {
    "spaces": ("TaskGaussian", "TaskSpace", "clip_task", "contains_task", "split_task", "task_space"),
    "protocol": (
        "Episode",
        "Feedback",
        "StepFeedback",
        "Teacher",
        "every_episode_teacher",
        "periodic_teacher",
        "returns_feedback",
    ),
    "uniform": ("UniformState", "uniform_teacher"),
    "loop": ("BlockLog", "StudentWorld", "run_teacher_student"),
    "alp_gmm": (
        "ALPGMMConfig",
        "ALPGMMState",
        "TEACHMYAGENT_ALP_GMM",
        "alp_gmm_teacher",
        "learning_progress",
    ),
    "adr": ("ADRConfig", "ADRState", "adr_teacher"),
    "oracle": ("OracleConfig", "OracleState", "oracle_teacher"),
    "riac": ("RIACConfig", "RIACState", "TEACHMYAGENT_RIAC", "riac_teacher"),
    "covar_gmm": ("CovarGMMConfig", "CovarGMMState", "covar_gmm_teacher"),
    "self_paced": (
        "SPDLV2Config",
        "SelfPacedConfig",
        "SelfPacedState",
        "self_paced_teacher",
        "spdl_v2_teacher",
    ),
    "goal_gan": ("GoalGANConfig", "GoalGANState", "goal_gan_teacher"),
    "setter_solver": ("SetterSolverConfig", "SetterSolverState", "setter_solver_teacher"),
}
__all__, __getattr__, __dir__ = lazy_names(__name__, _EXPORTS)
