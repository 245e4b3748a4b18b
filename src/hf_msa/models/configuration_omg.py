"""Configuration of OMG-Agent."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_msa import (
    LanguageModelSettings,
    LocalSettings,
    MsaConfig,
    ServerSettings,
    check_server,
    language_model_modalities,
    settings_of,
)


@strict
class OmgConfig(MsaConfig):
    r"""OMG-Agent: plan what a missing modality says, retrieve evidence of it, generate its features, classify.

    Paper: "OMG-Agent: Toward Robust Missing Modality Generation with Decoupled Coarse-to-Fine Agentic Workflows". Sections,
    equations and appendices are the paper's; ours = it does not say.

    Planner (section 3.3):
        planner: `"light"`: a lexicon, ridge probes and rules, for machines without a language model (ours); `"mllm"`: a
            language model (paper: a multimodal one).
        planner_model (`str`, *optional*): Folder, Hub name or GGUF file of that model (paper: Qwen2.5-Omni), or the URL of a
            server that has it.
        planner_kind: `"local"`, or `"endpoint"` for a server. Servers give no vectors, so plans and observations are then
            embedded by the text encoder, as for the light planner: sound and pictures by their features in words (ours).
        planner_lora (`bool`): Adapt it by LoRA (ours); its adapter lies in the folder `adapter` beside this configuration.
        planner_quantization: Load it in `"8bit"` or `"4bit"` (ours).
        planner_batch_size (`int`): Observations that it plans together.
        planner_served_model (`str`, *optional*): What the server calls the model. `None`: the only one that it serves.
        planner_key_variable (`str`, *optional*): Name of the environment variable that holds the server's key; the key
            itself is in no configuration.
        planner_top_logprobs (`int`): Tokens that the server lists at each position, from which entropies are worked out; as
            many as it allows, if that is fewer.
        planner_timeout (`float`): Seconds in which it has to answer.
        planner_retries (`int`): Further attempts where it does not, is busy or fails.
        planner_concurrency (`int`): Requests that are under way at once.
        planner_dtype (`str`), planner_device_map, planner_attention (`str`, *optional*), planner_revision (`str`,
            *optional*): How it is loaded: type of the weights, spread over devices (`"auto"`: all GPUs), implementation of
            attention, commit (ours).
        planner_modalities: What it is given in raw form: `"auto"`, all that it takes, or a list of text and of audio and
            vision; the rest is left out, which its prompt says (ours).
        use_verbalizer (`bool`): Describe features in words to the planner where it is not given sound or pictures and the
            data names the features (ours).
        planner_targets: What the adapter learns to plan beside the label's word: entity and action of its `"own"` best
            plans of complete clips, or those that the light planner's `"rules"` find in the transcript, for models whose
            own ones say nothing (ours).
        planner_constrained (`bool`): Let the language model write nothing but plans that keep to the schema (ours); small
            models do not keep to it by themselves.
        planner_folds (`int`): Training rows are planned for by light planners that were fitted without them: to all but one
            of so many parts of the training split. 1 lets the planner plan for the rows that it was fitted to (ours). A
            language model's adapter is not fitted anew for each part.
        num_candidates (`int`): Plans drawn for each observation (appendix A: 5).
        semantic_weight (`float`): lambda_s of eq. 5 (section 4.1: 0.3). The penalty of a plan that breaks the schema is
            infinite there, so its weight gamma has no effect and no field: such plans are dropped.
        log_prob: Of a candidate: the `"sum"` over its tokens (eq. 5), or their `"mean"`.
        reranking (`bool`): Choose by eq. 5; otherwise the first candidate that keeps to the schema.
        plan_temperature, plan_top_p (`float`), plan_max_new_tokens (`int`): Of the draws (ours).
        plan_source: Condition c_S: the `"planner"`'s, or Gaussian `"noise"` (w/o Planner, appendix A).
        plan_tokens: What the denoiser attends to: the `"pooled"` plan, a single vector (eq. 4), with which attention is the
            same for every position; or one vector `"per_constraint"` (ours).
        observation_features (`bool`): Let mean and deviation of the observed features of sound and pictures follow the
            vector of the words in u_X (ours). A text encoder's vector of features in words says next to nothing of them.
        condition_dim (`int`, *optional*): Width of plan and observation vectors. `None`: that of the text encoder, which
            embeds them for the light planner and for one on a server; where a local language model plans, training sets it
            to that model's.

    Retriever (section 3.4):
        query_dim (`int`): Width of queries and keys (ours).
        top_k (`int`): Entries that are attended to (appendix A: 10).
        retrieval_temperature (`float`): kappa of eq. 8 (appendix A: 0.07).
        retrieval_query: Queries from observation and `"plan"` (eq. 7), from the observation alone (`"content"`), or with the
            plan of a random other sample (`"random_plan"`).
        retrieval_aggregation: Evidence is the sum weighted by `"attention"` (eq. 8), the `"mean"` of the top K, or `"none"`.
        index_factory (`str`): `"Flat"` searches exactly; for very large knowledge bases, FAISS's factory string of an index.
        index_nprobe, index_ef_search (`int`, *optional*): How thoroughly an `IVF` or `HNSW` index is searched. `None`:
            FAISS's default, which misses much.

    Executor (sections 3.5, 3.6):
        sequence_length (`int`): Positions of each modality (4.1: 50, aligned); longer sequences are averaged to that many
            (ours).
        missing_length: How long what is missing is taken to be: the `"median"` of the training split; or what the lengths of
            `"observed"` modalities let expect (ours). Its true length is not known.
        missing_length_fits (`dict`, *optional*): Fitted to the training split where it is to be `"observed"`: modality ->
            lists of an observed one, slope and intercept, the closest fit first; the median stands where there is none.
        latent_dim, vae_hidden (`int`), kl_weight (`float`): Of the autoencoders (ours).
        denoiser_dim, denoiser_layers, denoiser_heads, denoiser_feedforward_dim (`int`): Of the denoisers (ours).
        injection: Where plan and evidence enter: `"hierarchical"` (eqs. 12, 13), `"reversed"`, `"concat"` or
            `"single_stream"` (ablations).
        num_train_timesteps (`int`): Steps of the noise schedule (ours; linear betas).
        prediction_type: What the denoisers predict, as diffusers calls it: `"v_prediction"` (ours), whose errors count alike
            at all time steps and are no larger in the estimate of z_0; or `"epsilon"`, the noise (eqs. 10, 15, 16), of which
            late steps, where nothing but the conditions tells samples apart, hardly count.
        scheduler: Sampler of diffusers: `"ddpm"` (eq. 11), `"ddim"` or `"dpm_solver++"`.
        num_inference_steps (`int`): Its steps. One gives the mean of what may be missing under the conditions; more give one
            of the many things that it may be, take longer, and score no better (ours, measured: docs/results.md).
        num_samples (`int`): Draws that are made of what is missing: features are their mean, probabilities of the classes
            the mean of what the classifier makes of each. Of use with several steps, as one step gives a mean already
            (ours).
        generation (`bool`): Generate what is missing; otherwise its latents are zeros for the classifier, nothing is
            retrieved, and neither denoisers nor retriever are trained (ours, for comparison).
        generation_seed (`int`): Of the noise that generation begins with; a sample's noise depends on it and on what is
            observed of the sample.

    Classifier and losses (section 3.6, eqs. 14 to 18):
        prediction: Scores of the `"classifier"`, or, to see what it adds, those of the `"planner"` alone, who reads what is
            observed and generates nothing; only for evaluation, of models that were trained with a classifier (ours).
        fusion_dim (`int`), dropout (`float`): Of the classifier (ours).
        classifier_input: Latents that it reads in training where they are missing: the one-step `"estimate"` (eq. 16), or
            the `"noisy"` ones (ablation Direct Classification).
        classifier_plan (`bool`): Let f_phi read c_S and the planner's score as well (ours).
        plan_loss_weight, evidence_loss_weight, task_loss_weight (`float`): Of L_plan, L_evi (eq. 15) and L_task (eq. 18;
            appendix A: 0.1 each).
        alignment_loss_weight (`float`): Of C_evi (eq. 9), which section 3.4 says is minimised, though eq. 15 leaves it out.
        refit_classifier (`bool`): Train the classifier once more when the executor is finished, on what that generates
            (ours): the one-step estimates of training are made of the true latents, so a classifier that has seen nothing
            else trusts generated ones too much.
        aux_weight: Losses that read the one-step estimate count by `"alpha_bar"` of the sample's time step, as the estimate
            is noise late in the chain (ours), or all alike (`"none"`, to the letter).

    Example:
        ```python
        from hf_msa import OmgConfig

        OmgConfig(audio_dim=5, vision_dim=20, num_inference_steps=1).ABLATIONS  # name -> fields
        ```
    """

    model_type = "hf_msa_omg"

    NEEDS_ONE_OF: ClassVar[tuple[str, ...]] = ("audio", "vision")
    ABLATIONS: ClassVar[dict[str, dict[str, Any]]] = {
        "wo_planner": {"plan_source": "noise"},
        "wo_reranking": {"reranking": False},
        "wo_retriever": {"retrieval_aggregation": "none"},
        "wo_generation": {"generation": False},
        "wo_sparse_attention": {"retrieval_aggregation": "mean"},
        "wo_plan_loss": {"plan_loss_weight": 0.0},
        "wo_evidence_loss": {"evidence_loss_weight": 0.0},
        "wo_consistency_losses": {"plan_loss_weight": 0.0, "evidence_loss_weight": 0.0},
        "wo_task_loss": {"task_loss_weight": 0.0},
        "direct_classification": {"classifier_input": "noisy"},
        "concat_injection": {"injection": "concat"},
        "reversed_injection": {"injection": "reversed"},
        "single_stream": {"injection": "single_stream"},
        "content_only_retrieval": {"retrieval_query": "content"},
        "random_plan_retrieval": {"retrieval_query": "random_plan"},
        "epsilon_prediction": {"prediction_type": "epsilon"},
        "wo_refit": {"refit_classifier": False},
        "wo_alignment_loss": {"alignment_loss_weight": 0.0},
        "wo_lora": {"planner_lora": False},
        "wo_verbalizer": {"use_verbalizer": False},
        "plan_per_constraint": {"plan_tokens": "per_constraint"},
        "mean_log_prob": {"log_prob": "mean"},
        "aux_weight_none": {"aux_weight": "none"},
        **{f"top_k_{value}": {"top_k": value} for value in (1, 5, 20, 50)},
        **{f"lambda_task_{value:g}": {"task_loss_weight": value} for value in (0.01, 0.05, 0.5, 1.0)},
    }

    planner: Literal["light", "mllm"] = "light"
    planner_model: str | None = None
    planner_kind: Literal["local", "endpoint"] = "local"
    planner_lora: bool = True
    planner_quantization: Literal["8bit", "4bit"] | None = None
    planner_batch_size: int = 8
    planner_served_model: str | None = None
    planner_key_variable: str | None = None
    planner_top_logprobs: int = 20
    planner_timeout: float | int = 120.0
    planner_retries: int = 4
    planner_concurrency: int = 4
    planner_dtype: str = "auto"
    planner_device_map: str | dict[str, Any] | None = None
    planner_attention: str | None = None
    planner_revision: str | None = None
    planner_modalities: str | list[str] | tuple[str, ...] = "auto"
    use_verbalizer: bool = True
    planner_targets: Literal["own", "rules"] = "own"
    planner_constrained: bool = False
    planner_folds: int = 1
    num_candidates: int = 5
    semantic_weight: float | int = 0.3
    log_prob: Literal["sum", "mean"] = "sum"
    reranking: bool = True
    plan_temperature: float | int = 0.8
    plan_top_p: float | int = 0.9
    plan_max_new_tokens: int = 48
    plan_source: Literal["planner", "noise"] = "planner"
    plan_tokens: Literal["pooled", "per_constraint"] = "pooled"
    observation_features: bool = False
    condition_dim: int | None = None

    query_dim: int = 256
    top_k: int = 10
    retrieval_temperature: float | int = 0.07
    retrieval_query: Literal["plan", "content", "random_plan"] = "plan"
    retrieval_aggregation: Literal["attention", "mean", "none"] = "attention"
    index_factory: str = "Flat"
    index_nprobe: int | None = None
    index_ef_search: int | None = None

    sequence_length: int = 50
    missing_length: Literal["median", "observed"] = "median"
    missing_length_fits: dict[str, Any] | None = None
    latent_dim: int = 32
    vae_hidden: int = 128
    kl_weight: float | int = 1e-4
    denoiser_dim: int = 256
    denoiser_layers: int = 6
    denoiser_heads: int = 8
    denoiser_feedforward_dim: int = 1024
    injection: Literal["hierarchical", "reversed", "concat", "single_stream"] = "hierarchical"
    num_train_timesteps: int = 1000
    prediction_type: Literal["v_prediction", "epsilon"] = "v_prediction"
    scheduler: Literal["ddpm", "ddim", "dpm_solver++"] = "ddpm"
    num_inference_steps: int = 1
    num_samples: int = 1
    generation: bool = True
    generation_seed: int = 0

    prediction: Literal["classifier", "planner"] = "classifier"
    fusion_dim: int = 128
    dropout: float | int = 0.1
    classifier_input: Literal["estimate", "noisy"] = "estimate"
    classifier_plan: bool = False
    plan_loss_weight: float | int = 0.1
    evidence_loss_weight: float | int = 0.1
    task_loss_weight: float | int = 0.1
    alignment_loss_weight: float | int = 0.1
    refit_classifier: bool = True
    aux_weight: Literal["alpha_bar", "none"] = "alpha_bar"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the class logits: those of the label family."""
        return tuple(self.family.classes)

    @property
    def language_model(self) -> LanguageModelSettings | None:
        """The language model that plans; None where a light planner does."""
        if self.planner != "mllm":
            return None
        return LanguageModelSettings(
            role="planner",
            field="planner_model",
            name=self.planner_model,
            kind=self.planner_kind,
            adapter_field="planner_lora",
            has_adapter=self.planner_lora,
            quantization=self.planner_quantization,
            batch_size=self.planner_batch_size,
            without='planner="light"',
            server=settings_of(self, "planner", ServerSettings),
            modalities=language_model_modalities(self, "planner"),
            local=settings_of(self, "planner", LocalSettings),
        )

    @property
    def plan_width(self) -> int:
        """Width of plan and observation vectors."""
        return int(self.condition_dim or self.text_config.hidden_size)

    @property
    def observation_width(self) -> int:
        """Width of u_X: that of vectors, and of pooled features where they follow."""
        widths: list[int] = [getattr(self, f"{name}_dim") for name in self.modalities[1:] if self.observation_features]
        return self.plan_width + 2 * sum(widths)

    def positions(self, modality: str) -> int:
        """Positions on which the executor works on a modality."""
        longest: int = getattr(self, f"{modality}_max_length")
        return min(self.sequence_length, longest)

    def validate_omg(self) -> None:
        """Check numbers, and what has to go together."""
        language_model_modalities(self, "planner")
        counts = (
            "planner_batch_size",
            "planner_folds",
            "num_candidates",
            "plan_max_new_tokens",
            "top_k",
            "sequence_length",
        )
        denoiser = ("denoiser_layers", "denoiser_dim", "denoiser_heads")
        sizes = (*denoiser, "query_dim", "latent_dim", "vae_hidden", "fusion_dim")
        self.check_numbers(*counts, *sizes, "num_train_timesteps", "num_inference_steps", "num_samples", at_least=1)
        losses = (f"{name}_loss_weight" for name in ("plan", "evidence", "task", "alignment"))
        self.check_numbers("semantic_weight", *losses, at_least=0)
        check_server(self, "planner")
        self.check_numbers("retrieval_temperature", "plan_temperature", above=0)
        self.check_numbers("plan_top_p", above=0, at_most=1)
        self.check_numbers("index_nprobe", "index_ef_search", at_least=1)
        if (
            self.planner == "mllm"
            and self.planner_kind == "endpoint"
            and (self.planner_lora or self.planner_quantization)
        ):
            raise ValueError(
                "A server loads its model itself: set planner_lora to False and leave planner_quantization out, or set "
                'planner_kind to "local".'
            )
        for fit in (fit for fits in (self.missing_length_fits or {}).values() for fit in fits):
            if (
                len(fit) != 3
                or fit[0] not in self.modalities
                or not all(isinstance(one, int | float) for one in fit[1:])
            ):
                raise ValueError(
                    f"missing_length_fits has {fit!r}; give lists of a modality, a slope and an intercept."
                )
        steps = self.num_train_timesteps
        self.check_numbers("num_inference_steps", at_most=steps, hint=", as the noise schedule has no more steps")
        if self.index_factory == "Flat" and not self.index_nprobe is self.index_ef_search is None:
            raise ValueError("index_nprobe and index_ef_search are for an index; name it by index_factory.")
        if self.prediction == "planner" and self.plan_source == "noise":
            raise ValueError('Noise in the place of plans has no score; leave prediction at "classifier".')
        if not self.generation and not self.task_loss_weight:
            raise ValueError("Without generation there is the task loss alone; leave task_loss_weight above 0.")
        if not self.task_loss_weight and not self.refit_classifier:
            raise ValueError(
                "Without a task loss the classifier learns in its refit alone; leave refit_classifier on."
            )
        if self.denoiser_layers % 2 or self.denoiser_dim % 2 or self.denoiser_dim % self.denoiser_heads:
            raise ValueError(
                f"denoiser_layers={self.denoiser_layers}, denoiser_dim={self.denoiser_dim} and denoiser_heads="
                f"{self.denoiser_heads} were given: the first two must be even, and the second a multiple of the third."
            )
