"""A wrong setting is refused before anything exists, by a message with its key, its value and the fix."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.machine.host import Host
from components.settings import gke, kubernetes
from components.settings.gcp import KEYS
from components.settings.stack import PROJECT_DIRECTORY, Settings, SettingsError, parse_settings
from tests.support.program import HOST_KEY, HUB_TOKEN, PROJECT, Program, run
from tests.unit.conftest import NO_SECRETS, ON_GKE, ON_GOOGLE, ON_KUBERNETES, ON_SERVERS, found

DEFAULT = "google/gemma-4-31B-it"
LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
HOST_WEIGHTS = {"modelSource": "host", "modelRevision": "", "hfToken": ""}
DIGEST = "@sha256:" + "c" * 64
HOST_FIX = "write it as in llm.example.com, 10.0.0.5 or 2001:db8::1"
PRIVATE_KEY_FIX = "give the file of the SSH private key for sshUser"
HOST_KEY_FIX = "copy the line that `cat /etc/ssh/ssh_host_ed25519_key.pub` prints"
PIN_FIX = "run `scripts/elastic-vllm pin --stack STACK`"
NEWER_VLLM = "use 0.32.0 or newer"

Values = Callable[..., dict[str, str]]


# base, the setting, its value, the cause, the fix
WRONG: list[Any] = [
    ("gpu", "sshport", "22", "no such setting", "did you mean sshPort?"),
    ("gpu", "https-port", "1", "no such setting", "did you mean httpsPort?"),
    ("gpu", "colour", "red", "no such setting", "remove it, or see Pulumi.yaml"),
    ("gpu", "target", "aws", "unknown value", "use existing or gcp"),
    ("gpu", "host", "", "not set", HOST_FIX),
    ("gpu", "host", "a b", "not a name or IP address", HOST_FIX),
    ("gpu", "host", "[::1]", "not a name or IP address", HOST_FIX),
    ("gpu", "host", "10.0.0.5:22", "not a name or IP address", HOST_FIX),
    ("gpu", "host", "2001:db8::1::2", "not a name or IP address", HOST_FIX),
    ("gpu", "host", "fe80::1%eth0", "an address of one link only", "use a global or unique local address"),
    ("gpu", "sshPort", "ssh", "not a whole number", "use 1 to 65535"),
    ("gpu", "sshPort", "2.5", "not a whole number", "use 1 to 65535"),
    ("gpu", "sshPort", "0", "out of range", "use 1 to 65535"),
    ("gpu", "sshPort", "65536", "out of range", "use 1 to 65535"),
    ("gpu", "sshUser", "", "not set", "use a Linux user name"),
    ("gpu", "sshUser", "-oProxyCommand=x", "invalid format", "use a Linux user name"),
    ("gpu", "sshUser", "1000", "invalid format", "use a Linux user name"),
    ("gpu", "sshUser", "john;doe", "invalid format", "use a Linux user name"),
    ("gpu", "sshUser", "john\\", "invalid format", "use a Linux user name"),
    ("gpu", "sshPrivateKeyPath", "", "not set", PRIVATE_KEY_FIX),
    ("gpu", "sshPrivateKeyPath", "@absent", "cannot be read (No such file or directory)", PRIVATE_KEY_FIX),
    ("gpu", "sshPrivateKeyPath", "@", "cannot be read (Is a directory)", PRIVATE_KEY_FIX),
    ("gpu", "sshPrivateKeyPath", "@binary", "cannot be read (not a text file)", PRIVATE_KEY_FIX),
    ("gpu", "sshPrivateKeyPath", "@plain.pub", "is not an SSH private key", "give the private key, not the .pub file"),
    ("gpu", "sshPrivateKeyPath", "@encrypted", "has a passphrase", "--secret sshPrivateKeyPassword"),
    ("gpu", "sshPrivateKeyPath", "@pem-encrypted", "has a passphrase", "--secret sshPrivateKeyPassword"),
    ("gpu", "sshPrivateKeyPath", "~nobody-of-that-name/key", "cannot be read", PRIVATE_KEY_FIX),
    ("gpu", "sshPrivateKeyPath", "a\0b", "cannot be read", PRIVATE_KEY_FIX),
    ("gpu", "sshHostKey", "", "not set", HOST_KEY_FIX),
    ("gpu", "sshHostKey", "@absent", "neither a public key nor a file that can be read", HOST_KEY_FIX),
    ("gpu", "sshHostKey", "@binary", "neither a public key nor a file that can be read", HOST_KEY_FIX),
    ("gpu", "sshHostKey", "@plain", "not a public key of the form", HOST_KEY_FIX),
    ("gpu", "sshHostKey", "ssh-ed25519", "not a public key of the form", HOST_KEY_FIX),
    ("gpu", "sshHostKey", "ssh-ed25519 !!!!", "not a public key of the form", HOST_KEY_FIX),
    ("gpu", "sshHostKey", HOST_KEY.replace("ssh-ed25519", "ssh-rsa"), "of type ssh-rsa", HOST_KEY_FIX),
    ("gpu", "containerRuntime", "crio", "unknown value", "use docker or podman"),
    ("gpu", "accelerator", "amd", "unknown value", "use nvidia or none"),
    ("gpu", "gpuCount", "0", "out of range", "use 1 to 16"),
    ("gpu", "gpuCount", "two", "not a whole number", "use 1 to 16"),
    ("gpu", "gpuCount", "3", "does not divide a model's attention heads", "use 1, 2, 4, 8 or 16"),
    ("local", "gpuCount", "two", "not a whole number", "use 1 to 16"),
    ("gpu", "gpuMemoryGib", "0", "out of range", "use 1 to 1024"),
    ("gpu", "gpuMemoryGib", "80 GiB", "not a whole number", "use 1 to 1024"),
    ("gpu", "gpuMemoryUtilization", "1", "out of range", "use 0.1 to 0.99"),
    ("gpu", "gpuMemoryUtilization", "0.05", "out of range", "use 0.1 to 0.99"),
    ("local", "gpuMemoryUtilization", "90", "not a decimal fraction", "use 0.1 to 0.99"),
    ("gpu", "gpuMemoryUtilization", "most", "not a decimal fraction", "use 0.1 to 0.99"),
    ("gpu", "model", "Mistral/Small", "not in the catalogue", "use one of mistralai/"),
    ("gpu", "model", "qwen/qwen3.6-27b", "not in the catalogue", "if you meant Qwen/Qwen3.6-27B, use that, or set"),
    ("local", "maxConcurrentRequests", "0", "out of range", "use 1 to 10000"),
    ("local", "maxConcurrentRequests", "10001", "out of range", "use 1 to 10000"),
    ("local", "maxRequestsPerMinute", "0", "out of range", "use 1 to 600000"),
    ("local", "maxRequestsPerMinute", "600001", "out of range", "use 1 to 600000"),
    ("local", "maxBodyMib", "0", "out of range", "use 1 to 1024"),
    ("local", "maxBodyMib", "1025", "out of range", "use 1 to 1024"),
    ("local", "keys", '["siem"]', "not an object", "keys: {default: [1], siem: [2, 1]}"),
    ("local", "keys", "siem", "not an object", "keys: {default: [1], siem: [2, 1]}"),
    ("local", "keys", '["siem=2,1", "soc=1"]', "not an object", "write keys: {siem: [2, 1], soc: [1]}"),
    ("local", "keys", '{"siem": 2}', "siem: 2 is no list of one or two versions", "siem: [2, 1]"),
    ("local", "keys", '{"siem": "2,1"}', 'siem: "2,1" is no list', "siem: [2, 1]"),
    ("local", "keys", '{"siem": []}', "siem: [] is no list", "siem: [2, 1]"),
    ("local", "keys", '{"siem": [0]}', "siem: [0] is no list", "siem: [2, 1]"),
    ("local", "keys", '{"siem": [1000000]}', "siem: [1000000] is no list", "siem: [2, 1]"),
    ("local", "keys", '{"siem": [true]}', "siem: [true] is no list", "siem: [2, 1]"),
    ("local", "keys", '{"siem": ["2"]}', 'siem: ["2"] is no list', "siem: [2, 1]"),
    (
        "local",
        "keys",
        '{"siem": [1, 2]}',
        "siem: [1, 2] is no list of one or two versions, newest first",
        "siem: [2, 1]",
    ),
    (
        "local",
        "keys",
        '{"siem": [2, 2]}',
        "siem: [2, 2] is no list of one or two versions, newest first",
        "siem: [2, 1]",
    ),
    ("local", "keys", '{"siem": [3, 2, 1]}', "siem: [3, 2, 1] is no list", "siem: [2, 1]"),
    ("local", "keys", '{"default": null}', "default: null is no list", "siem: [2, 1]"),
    ("local", "keys", '{"v1": [1]}', "'v1' can't be a key's name", "beginning with a letter"),
    ("local", "keys", '{"Siem": [1]}', "'Siem' can't be a key's name", "beginning with a letter"),
    ("local", "servedModelName", "my model", "invalid format", "use letters, digits"),
    ("local", "servedModelName", "rehearsal/tiny", "the same as model", "choose a name that stays"),
    ("gpu", "modelSource", "bundle", "unknown value", "use hub or host"),
    ("gpu", "modelRevision", "", "not a commit of 40 hexadecimal digits", PIN_FIX),
    ("gpu", "modelRevision", "main", "not a commit of 40 hexadecimal digits", PIN_FIX),
    ("local", "modelRevision", "a" * 40, "nothing is downloaded with modelSource host", "remove it"),
    ("gpu", "weightsDirectory", "", "not set", "give an absolute path without spaces"),
    ("gpu", "weightsDirectory", "models", "invalid format", "give an absolute path without spaces"),
    ("gpu", "weightsDirectory", "/my models", "invalid format", "give an absolute path without spaces"),
    ("gpu", "hfEndpoint", "", "not set", "give an https:// address"),
    ("gpu", "hfEndpoint", "ftp://hub", "invalid format", "give an https:// address"),
    ("gpu", "maxModelLen", "-1", "out of range", "use 0 to 10000000"),
    ("gpu", "maxModelLen", "64k", "not a whole number", "use 0 to 10000000"),
    ("local", "maxModelLen", "4097", "more than the 4096 that rehearsal/tiny was made for", "use 4096 or less"),
    ("gpu", "vllmExtraArgs", "--x y", "not a list of texts", 'write ["--option", "value"]'),
    ("gpu", "vllmExtraArgs", '{"--x": "y"}', "not a list of texts", 'write ["--option", "value"]'),
    ("gpu", "vllmExtraArgs", "[8]", "not a list of texts", 'write ["--option", "value"]'),
    ("gpu", "vllmImage", "", "not set", PIN_FIX),
    ("gpu", "vllmImage", "vllm/vllm-openai:v0.32.0", "not pinned as name:tag@sha256:digest", PIN_FIX),
    ("gpu", "vllmImage", f"vllm/vllm-openai{DIGEST}", "not pinned as name:tag@sha256:digest", PIN_FIX),
    ("gpu", "vllmImage", "localhost/vllm", "not pinned as name:tag@sha256:digest", PIN_FIX),
    (
        "gpu",
        "vllmImage",
        "localhost/vllm:debian",
        "its tag does not say a released version of vLLM",
        "tag it like v0.32.0",
    ),
    ("gpu", "vllmImage", f"vllm:v0.31.9{DIGEST}", "a vLLM this old has known vulnerabilities", NEWER_VLLM),
    ("gpu", "vllmImage", "localhost/vllm:0.31.9", "a vLLM this old has known vulnerabilities", NEWER_VLLM),
    ("gpu", "nginxImage", "", "not set", PIN_FIX),
    ("gpu", "nginxImage", "nginx:1.30.2", "not pinned as name:tag@sha256:digest", PIN_FIX),
    ("gpu", "endpointHost", "https://llm", "not a name or IP address", HOST_FIX),
    ("gpu", "httpsPort", "https", "not a whole number", "use 1 to 65535"),
    ("gpu", "httpsPort", "70000", "out of range", "use 1 to 65535"),
]


@pytest.mark.parametrize(("base", "key", "value", "cause", "fix"), WRONG)
def test_a_wrong_setting_is_named_with_its_value_and_the_fix(
    base: str, key: str, value: str, cause: str, fix: str, settle: Callable[..., Settings], key_files: Path
) -> None:
    (problem,) = found(lambda: settle(base, {key: value}))
    value = str(key_files / value[1:]) if value.startswith("@") else value
    shown = f" = {value!r}" if value else ""
    assert problem.startswith(f"{key}{shown}: ")
    reason, _, advice = problem.removeprefix(f"{key}{shown}: ").partition("; ")
    assert cause in reason
    assert fix in advice


# Settings that are only wrong together: base, the settings, the one that is named, the cause, the fix
CONTRADICTIONS: list[Any] = [
    ("local", {"hfToken": HUB_TOKEN}, "hfToken", "nothing is downloaded with modelSource host", "remove it"),
    (
        *("gpu", {"model": LLAMA, "gpuCount": 4, "hfToken": ""}),
        *("hfToken", f"not set, but {LLAMA} is gated", "pulumi config set --secret hfToken"),
    ),
    (
        *("gpu", {"model": "acme/Huge", "weightsGb": 160}),
        *("model", "2 x 80 GiB at 90 % are 144 GiB", "use a smaller model or more GPU memory"),
    ),
    ("gpu", {"model": "acme/Small", "weightsGb": -1}, "weightsGb", "out of range", "use 0 to 100000"),
    ("prod", {"containerRuntime": "podman"}, "containerRuntime", "target gcp sets up Docker", "use target existing"),
    ("gpu", {"containerRuntime": "podman"}, "sshUser", "only root can use Podman's API", "set it to root"),
    (
        *("gpu", {"containerRuntime": "podman", "sshUser": "root", "host": "2001:db8::5"}),
        *("ipv6", "Podman publishes the port on IPv4 only", "use IPv4, or docker"),
    ),
    (
        *("gpu", {"containerRuntime": "podman", "sshUser": "root", "dcgmImage": "localhost/dcgm:4.5.0"}),
        *("dcgmImage", "the exporter needs Docker's GPU requests", "or use docker"),
    ),
    ("prod", {"accelerator": "none"}, "accelerator", "every machine type here has GPUs", "remove it"),
    ("local", {"tlsCa": "ca.pem"}, "tlsCa", "set, but tls is private-ca", "set tls to provided or letsencrypt"),
    (
        *("gpu", {"model": "rehearsal/tiny", "modelCatalogue": "scripts/lab/models.yaml", **HOST_WEIGHTS}, "model"),
        *("served on the CPU, but a registry's vLLM needs GPUs", "use another model or vllmImage"),
    ),
]


@pytest.mark.parametrize(("base", "overrides", "key", "cause", "fix"), CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused(
    base: str, overrides: dict[str, Any], key: str, cause: str, fix: str, settle: Callable[..., Settings]
) -> None:
    problems = found(lambda: settle(base, overrides))
    (problem,) = [problem for problem in problems if problem.startswith((f"{key} =", f"{key}:"))]
    reason, _, advice = problem.partition("; ")
    assert cause in reason
    assert fix in advice


@pytest.mark.parametrize(
    ("argument", "fix"),
    [
        ("--model", "use the setting model"),
        ("--served-model-name", "use the setting servedModelName"),
        ("--max-model-len=8", "use the setting maxModelLen"),
        ("--max_model_len", "use the setting maxModelLen"),
        ("--tensor-parallel-size", "use the setting gpuCount"),
        ("-tp", "use the setting gpuCount"),
        ("--gpu-memory-utilization", "use the setting gpuMemoryUtilization"),
        ("--revision", "use the setting modelRevision"),
        *[
            (argument, "remove it: the program decides this")
            for argument in (
                *("--host", "--port", "--uds", "--root-path", "--middleware"),
                *("--api-key", "--api-key=x", "--api_key=x", "--api", "--api-k=x"),
                *("--ssl-keyfile", "--ssl-certfile", "--ssl_cert=x"),
                *("--enable-log-requests", "--enable-log-outputs", "--trust-request-chat-template"),
            )
        ],
    ],
)
def test_vllm_arguments_cannot_undo_what_the_endpoint_promises(
    argument: str, fix: str, settle: Callable[..., Settings]
) -> None:
    (problem,) = found(lambda: settle("gpu", {"vllmExtraArgs": ["--max-num-seqs", "8", argument, "x"]}))
    assert problem.startswith("vllmExtraArgs = ")
    assert f"{argument} is not yours to give" in problem
    assert problem.endswith(fix)


@pytest.mark.parametrize(
    ("overrides", "fix"),
    [
        ({"vllmExtraArgs": ["--tool-call-parser", "hermes"]}, "the catalogue gives gemma4"),
        ({"vllmExtraArgs": ["--tool-call-parser=hermes"]}, "the catalogue gives gemma4"),
        ({"vllmExtraArgs": ["--tool_call_parser=hermes"]}, "the catalogue gives gemma4"),
        ({"vllmExtraArgs": ["--tool-call-pars", "hermes"]}, "the catalogue gives gemma4"),
        (
            {"model": "mistralai/Other", "weightsGb": 9, "vllmExtraArgs": ["--tool-call-parser", "hermes"]},
            "use mistral",
        ),
        (
            {"model": "Qwen/Other", "weightsGb": 9, "vllmExtraArgs": ["--tool-call-parser", "mistral"]},
            "use hermes or qwen3_coder or qwen3_xml",
        ),
    ],
)
def test_a_tool_call_parser_of_another_family_is_refused(
    overrides: dict[str, Any], fix: str, settle: Callable[..., Settings]
) -> None:
    (problem,) = found(lambda: settle("gpu", overrides))
    assert problem.startswith("vllmExtraArgs = ")
    assert f"does not belong to {overrides.get('model', DEFAULT)}" in problem
    assert problem.endswith(fix)


def test_a_vllm_too_old_for_the_model_is_refused(settle: Callable[..., Settings], tmp_path: Path) -> None:
    catalogue = tmp_path / "models.yaml"
    catalogue.write_text("models: {acme/New: {weights_gb: 1, least_vllm: 0.40.1}}")
    new = {"modelCatalogue": str(catalogue), "model": "acme/New"}
    (problem,) = found(lambda: settle("gpu", {**new, "vllmImage": f"vllm:v0.40.0{DIGEST}"}))
    assert "a vLLM this old can't serve acme/New; use 0.40.1 or newer" in problem
    assert not found(lambda: settle("gpu", {**new, "vllmImage": f"vllm:v0.40.1{DIGEST}"}))


@pytest.mark.parametrize("stack", ["Prod", "prod_1", "-prod", "p" * 41])
def test_a_stack_name_that_fits_no_container_is_refused(stack: str, settle: Callable[..., Settings]) -> None:
    (problem,) = found(lambda: settle("gpu", {}, stack))
    assert problem == f"stack name {stack!r}: not usable in names on the server; use up to 40 of a-z, 0-9 and '-'"


@pytest.mark.parametrize(
    ("base", "overrides"),
    [
        ("local", {}),
        ("local", {"model": "rehearsal/tiny-2"}),
        ("gpu", {}),
        ("gpu", {"hfToken": ""}),
        ("gpu", {"modelSource": "host", "modelRevision": "", "hfToken": ""}),
        ("gpu", {"hfEndpoint": "http://10.0.0.5:8080/hub"}),
        ("gpu", {"model": LLAMA, "gpuCount": 4}),
        ("gpu", {"model": LLAMA, "gpuMemoryGib": 96}),
        ("gpu", {"model": "acme/Own", "weightsGb": 30, "vllmExtraArgs": ["--tool-call-parser", "acme"]}),
        ("gpu", {"vllmExtraArgs": ["--tool-call-parser", "gemma4", "--max-num-seqs=8", "-O3"]}),
        ("gpu", {"maxModelLen": 131072}),
        ("gpu", {"keys": {"default": [2], "siem": [3, 1]}}),
        ("gpu", {"vllmImage": "localhost/vllm:v1.0.0", "nginxImage": "localhost/nginx:debian"}),
        ("gpu", {"endpointHost": "10.0.0.5"}),
        ("gpu", {"host": "2001:db8::5", "endpointHost": "::1"}),
        ("gpu", {"sshUser": "john.doe"}),
        ("gpu", {"sshUser": "DOMAIN-user"}),
        ("gpu", {"sshUser": "DOMAIN\\user"}),
        ("gpu", {"sshUser": "user@ad.example.com"}),
        ("gpu", {"sshUser": "Admin"}),
        ("gpu", {"sshUser": "llm$"}),
        ("gpu", {"sshHostKey": "@host.pub"}),
        ("gpu", {"sshHostKey": "@known_hosts"}),
    ],
)
def test_good_settings_are_accepted(base: str, overrides: dict[str, Any], settle: Callable[..., Settings]) -> None:
    assert not found(lambda: settle(base, overrides))


def test_all_problems_are_in_one_error(settle: Callable[..., Settings]) -> None:
    wrong = {"host": "", "sshPort": 0, "nginxImage": "nginx", "keys": "x", "hftoken": ""}
    with pytest.raises(SettingsError, match="5 settings are wrong in stack local; nothing was changed") as error:
        settle("gpu", wrong)
    reason = {line.removeprefix("  - ").partition(":")[0].split(" ")[0] for line in str(error.value).splitlines()[1:]}
    assert reason == set(wrong)
    with pytest.raises(SettingsError, match=r"^1 setting is wrong in stack local; nothing was changed"):
        settle("gpu", {"host": ""})


@pytest.mark.parametrize(
    ("overrides", "secret"),
    [
        ({"modelSource": "host", "hfToken": HUB_TOKEN, "host": "", "model": "", "colour": "red"}, HUB_TOKEN),
        ({"hf_token": HUB_TOKEN}, HUB_TOKEN),
        ({"sshPrivateKeyPath": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNz\n"}, "b3BlbnNz"),
    ],
)
def test_no_message_shows_a_secret(overrides: dict[str, str], secret: str, settle: Callable[..., Settings]) -> None:
    problems = found(lambda: settle("gpu", overrides))
    assert problems
    assert secret not in "\n".join(problems)


def test_a_hub_address_holds_no_password(settle: Callable[..., Settings]) -> None:
    assert found(lambda: settle("gpu", {"hfEndpoint": "https://user:password@mirror.example"}))


def test_nothing_is_registered_when_a_setting_is_wrong(values_of: Values) -> None:
    program = Program()
    with pytest.raises(SettingsError):
        run(values_of("local", keys="x"), program=program)
    assert program == Program()


def missed(values: dict[str, str], key: str) -> bool:
    """True if the settings can't be read without this one."""
    try:
        parse_settings({name: value for name, value in values.items() if name != key}, "local", NO_SECRETS)
    except KeyError:
        return True
    return False


@pytest.mark.parametrize("key", PROJECT["config"])
def test_every_declared_setting_is_read(key: str, values_of: Values) -> None:
    bases = ON_KUBERNETES if key in kubernetes.KEYS else ON_GOOGLE if key in KEYS | {"parked"} else ON_SERVERS
    bases = ON_GKE if key in gke.KEYS else bases
    stacks = [values_of(base) for base in [*bases, *ON_GOOGLE]]
    assert any(missed(values, key) for values in (*stacks, values_of("gpu", model="acme/Own", weightsGb=9)))


@pytest.mark.parametrize("key", PROJECT["config"])
def test_every_setting_has_a_type_a_description_and_a_default(key: str) -> None:
    entry = PROJECT["config"][key]
    # A secret has no type: see the head of Pulumi.yaml.
    assert ("type" in entry) == ("secret" not in entry)
    kinds = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}
    kind = kinds[entry.get("type", "string")]
    assert type(entry["default"]) is kind
    assert len(entry["description"]) > 20
    assert ("items" in entry) == (kind is list)


def test_settings_know_where_things_are(settle: Callable[..., Settings], key_files: Path) -> None:
    settings = settle("gpu", {"sshHostKey": "@host.pub", "sshPrivateKeyPath": "@plain"}, stack="prod")
    assert isinstance(settings.target, Host)
    assert settings.target.host_key == HOST_KEY  # without the comment
    assert settings.ssh_key.path == key_files / "plain"
    assert settings.target.directory == "/var/lib/elastic-vllm/prod"
    assert settings.target.prefix == "elastic-vllm-prod"
    name = f"{DEFAULT.replace('/', '--')}--{settings.model_revision[:12]}"
    assert settings.weights_path == f"/var/lib/elastic-vllm/models/{name}"
    assert settings.target.address == "llm.example"


def test_a_relative_private_key_counts_from_the_project(
    settle: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (problem,) = found(lambda: settle("gpu", {"sshPrivateKeyPath": "Pulumi.yaml"}))
    assert "is not an SSH private key" in problem, f"{PROJECT_DIRECTORY}/Pulumi.yaml was not read"
