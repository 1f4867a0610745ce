"""Breaks of what providers are told of a schema: what is kept, what is said to be lost, and where it is applied."""

from tests.sabotage.patch import Break

_HERE = "app/llm/schemas/"
DIALECTS, FITTING, MERGING, REQUESTS, REFERENCES, PATTERNS, SCALARS, ARRAYS, OBJECTS = (
    f"{_HERE}{name}.py"
    for name in (
        "dialects", "fitting", "merging", "requests", "references", "patterns", "scalars", "arrays", "objects",
    )
)  # fmt: skip
ROUTER = "app/llm/router.py"

UNIT = "tests/unit/llm/schemas/test_fitting.py::test_"
PROPERTY = "tests/property/test_schemas.py::test_"
ROUTING = "tests/unit/llm/test_schema_routing.py::test_"
WIRE = "tests/wire/test_schemas.py::test_"
SAID_OTHERWISE = UNIT + "what_can_be_said_in_other_words_is_no_misfit"
NAMED = UNIT + "what_cannot_be_said_is_left_out_and_named"
WIDER = PROPERTY + "a_simplified_schema_accepts_whatever_the_schema_accepts"

SCHEMA_BREAKS = (
    Break(
        "a-lost-constraint-is-not-said",
        "schemas",
        FITTING,
        "self._misfits[Misfit(path, keyword)] = None",
        "pass",
        (NAMED,),
    ),
    Break(
        "the-place-of-a-misfit-is-that-of-its-parent",
        "schemas",
        OBJECTS,
        'name: walk.node(each, below(path, "properties", name))',
        "name: walk.node(each, path)",
        (UNIT + "a_misfit_has_the_json_pointer_of_its_place",),
    ),
    Break(
        "exclusive-bounds-of-integers-let-one-less-through",
        "schemas",
        f"{_HERE}values.py",
        'least.append(math.floor(rules["exclusiveMinimum"]) + 1)',
        'least.append(math.floor(rules["exclusiveMinimum"]) + 2)',
        (SAID_OTHERWISE,),
    ),
    Break(
        "of-one-of-only-the-first-stays",
        "schemas",
        MERGING,
        'rules["anyOf"] = members',
        'rules["anyOf"] = members[:1]',
        (WIDER,),
    ),
    Break(
        "a-pattern-goes-and-the-record-stays-closed",
        "schemas",
        OBJECTS,
        "others = True  # whatever fits a pattern is no additional property",
        "pass",
        (WIDER,),
    ),
    Break(
        "all-of-takes-the-looser-bound",
        "schemas",
        MERGING,
        '("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max',
        '("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), min',
        (NAMED,),
    ),
    Break(
        "every-pattern-is-plain",
        "schemas",
        PATTERNS,
        "if token is None or not _follows(token, depth, repeatable=repeatable):",
        "if token is None:",
        (UNIT + "a_pattern_is_sent_only_if_the_grammar_means_the_same",),
    ),
    Break(
        "repetitions-that-llama-cpp-refuses-are-sent",
        "schemas",
        SCALARS,
        'return key != "format" and isinstance(value, int) and value >= MAX_REPETITIONS',
        "return False",
        (NAMED,),
    ),
    Break(
        "gemini-gets-cycles-that-it-refuses",
        "schemas",
        DIALECTS,
        "cycles_need_an_option=True",
        "cycles_need_an_option=False",
        (UNIT + "gemini_takes_a_cycle_through_a_property_that_may_be_left_out",),
    ),
    Break(
        "two-definitions-make-one-rule",
        "schemas",
        REFERENCES,
        'while _NOT_IN_A_RULE.sub("-", name) in taken:',
        "while name in taken:",
        (UNIT + "definitions_whose_names_make_one_rule_of_a_grammar_get_two",),
    ),
    Break(
        "copies-grow-without-limit",
        "schemas",
        FITTING,
        "or self._nodes > MAX_NODES",
        "or self._nodes > 20 * MAX_NODES",
        (UNIT + "copies_do_not_grow_without_limit",),
    ),
    Break(
        "gemini-tools-get-integers-in-an-enum-that-litellm-drops",
        "schemas",
        DIALECTS,
        'enums=frozenset({"string"})',
        'enums=frozenset({"string", "integer"})',
        (NAMED,),
    ),
    Break(
        "any-value-becomes-an-object-on-its-way-to-gemini",
        "schemas",
        DIALECTS,
        'anything={"anyOf": [*_SIMPLE, {"type": "array", "items": {"anyOf": [*_SIMPLE]}}]}',
        "anything={}",
        (UNIT + "where_any_value_has_no_word_less_is_accepted_and_that_is_said",),
    ),
    Break(
        "an-exact-tuple-loses-its-length",
        "schemas",
        ARRAYS,
        'counts["maxItems"] = min(counts.get("maxItems", len(first)), len(first))',
        "pass",
        (SAID_OTHERWISE,),
    ),
    Break(
        "the-answer-s-schema-leaves-as-it-is",
        "schemas",
        REQUESTS,
        'changed["response_format"] = form.model_copy(update={"json_schema": schema})',
        "pass",
        (
            WIRE + "an_agent_s_schemas_are_fitted_where_they_leave_and_validated_by_the_agent",
            WIRE + "ollama_gets_every_type_of_the_corpus_as_an_answer",
        ),
    ),
    Break(
        "parameters-of-tools-leave-as-they-are",
        "schemas",
        REQUESTS,
        'tool.model_copy(update={"parameters": fitted(tool.parameters, in_dialect).schema})',
        "tool",
        (WIRE + "ollama_gets_every_type_of_the_corpus_as_a_tool",),
    ),
    Break(
        "ollama-gets-schemas-as-they-are",
        "schemas",
        "app/llm/providers/ollama.py",
        "request = in_dialects(request, _DIALECTS)",
        "pass",
        (WIRE + "ollama_gets_every_type_of_the_corpus_as_a_tool",),
    ),
    Break(
        "gemini-gets-schemas-as-they-are",
        "schemas",
        "app/llm/providers/gemini.py",
        "request = in_dialects(request, dialects(model))",
        "pass",
        (WIRE + "gemini_gets_every_type_of_the_corpus_as_an_answer",),
    ),
    Break(
        "what-was-fitted-is-shared",
        "schemas",
        FITTING,
        "return {key: _copied(inner) for key, inner in value.items()}",
        "return value",
        (UNIT + "where_any_value_has_no_word_less_is_accepted_and_that_is_said", UNIT + "what_is_made_of_one_schema_is_no_part_of_another"),
    ),
    Break(
        "a-candidate-at-a-loss-is-asked",
        "schemas",
        ROUTER,
        "or self._at_a_loss(candidate.caps, needs)",
        "",
        (ROUTING + "routed_elsewhere_the_candidate_is_excluded_with_place_and_keyword",),
    ),
    Break(
        "routes-are-remembered-without-what-is-lost",
        "schemas",
        ROUTER,
        "(who, needs.skills, needs.losses) for who, needs",
        "(who, needs.skills, ()) for who, needs",
        (ROUTING + "equal_requests_but_for_the_schema_have_routes_of_their_own",),
    ),
    Break(
        "nobody-refuses-a-schema",
        "schemas",
        ROUTER,
        "if self.schema_mismatch is SchemaMismatch.ERROR:",
        "if False:",
        (ROUTING + "refused_the_call_ends_with_place_and_keyword",),
    ),
    Break(
        "copies-of-definitions-count-for-nothing",
        "schemas",
        "app/llm/needs.py",
        "if _COPIED in said:",
        "if False:",
        (ROUTING + "what_copies_of_definitions_add_to_a_tool_is_estimated",),
    ),
)  # fmt: skip
