"""Makes random vectors, to compare the resolver with Prefect on inputs that nobody thought of.

Run it where regenerate.py runs:

    python random_vectors.py DIR COUNT [SEED]

Each file is one of vectors/ whose inputs were changed at random, with what Prefect makes of them; DIR/rules
has ten times as many inputs and outputs of single rules, as in rules.json. The same seed makes the same files.
"""

import json
import os
import pathlib
import random
import re
import sys

import regenerate

TEXTS = [
    "", " ", "a", "text", "0", "-1", "900", "900.0", "9_0", " 90 ", "true", "None", "null", "A-b_C", "1st", "é", "日本", "ǅ", "İ", "ß", "\u00a0x",
    "it's", 'say "x"', "both ' and \"", "back\\slash", "a\nb", "tab\t", "\u2028", "\x1f", "😀", "a b  c", "'open", '"a b" c', "x\\", "a'b'c",
    "1,000", "a,b", "&amp;", "&#65;", "&#x41;", "&lt;b&gt;", "&nosuch;", "-", "--x--", "_", "prefect.io/x", "x" * 70, "{", "}}", "{{", "{{ }}",
    "{{ a b }}", "$HOME", "projects/p/secrets/s", "2026-01-02", "K", "ſ", "½", "²", "١٢", "Ⅷ", "Straße", "Ελλάδα", "Привет", "שלום", "한국",
]
NUMBERS = [0, 1, -1, 2, 7, 600, 3600, 604800, 604801, 10**20, 0.0, -0.0, 1.0, 1.5, 600.0, 1e16, 1e-7, 1e22, 123456789.125]
NAMES = [
    "a", "b", "l", "o", "env", "labels", "image", "command", "args", "name", "cpu", "memory", "timeout", "region", "keep_job", "max_retries",
    "launch_stage", "vpc_connector_name", "service_account_name", "cloudsql_instances", "env_from_secrets", "prefect_api_key_secret",
    "prefect_api_auth_string_secret", "credentials", "a-b", "_x", "ä", "1", "0", "A",
]
PATHS = [
    "a.b", "a.b.c", "a[0]", "a[-1]", "a.0", "l[0]", "l[1].x", "l.-1", "l[-2]", "l[01]", "l[1_0]", "o.k", "o.k.z[1]", "o[k]", "o..k", ".a", "a.", "a]",
    "[0]", "env.A", "env.FOO", "labels.x", "image[0]", "o.١", "name[0][0]", "a.b.", "l[+1]", "env[A]", "credentials.project", "timeout.x",
]
ENVIRONMENT = {"HOME": "/root", "A": "from the environment", "EMPTY": "", "QUOTED": "it's {{ a }}"}
NUMBER_SIGNS = ["", "+", "-", " ", "\t", "\u00a0"]
NUMBER_TEXTS = ["", "0", "00", "1", "60", "3_600", "1__0", "_1", "1_", "1e3", "٣", "３", "½", "0x1f", "1,000", "9" * 9, "9" * 40]
NUMBER_ENDS = ["", ".", ".0", ".00", ".5", "_0", ".0_0", " ", "\n", "\u3000", "e0", "j"]
FLAGS = ["true", "tRuE", "YES", "no", "On", "off", "y", "N", "t", "f", "1", "0", "01", " true", "true ", "1.0", "ﬀ", "oﬀ", "İ", "ſ", "true\n", 2, 10**30]
SHELL = ["a", "b c", "'", '"', "\\", "\n", " ", "\t", "\r", "#", "$x", "é", "\u00a0", "\x00", "\x0b", "''", '\\"', "\\'"]
SPACES = ["", " ", "  ", "\t", "\n", "\u00a0", "\x1c", "\u200b"]


class Maker:
    def __init__(self, seed):
        self.r = random.Random(seed)
        self.blocks, self.variables = [{"id": "00000000-0000-4000-8000-000000000000"}], {}

    def chance(self, p):
        return self.r.random() < p

    def pick(self, of):
        return self.r.choice(of)

    def placeholder(self):
        r = self.r.random()
        if r < 0.45:
            name = self.pick(NAMES)
        elif r < 0.65:
            name = self.pick(PATHS)
        elif r < 0.72:
            name = "$" + self.pick(["HOME", "A", "EMPTY", "QUOTED", "NONE", "$A", "A.b"])
        elif r < 0.82:
            name = "prefect.variables." + self.pick(["v", "v1", "none", "v.k", "v[0]", "v1.k.z[0]", "", "V"])
        elif r < 0.94:
            name = "prefect.blocks." + self.pick(["secret", "json", "t-1", "none"]) + self.pick([".b", ".b1", "", ".", ".none"])
            name += self.pick(["", "", "", ".value", ".value.k", ".k", ".k.z", ".l[0]", ".value[0]", ".values", "[0]", ".nope"])
        else:
            name = "ctx." + self.pick(["flow.name", "flow_run.name", "flow_run.id", "flow_run.parameters.n", "flow_run.tags[0]", "flow_run.nope", "flow"])
        left, right = (self.pick(SPACES), self.pick(SPACES)) if self.chance(0.15) else (" ", " ")
        return "{{" + left + name + right + "}}"

    def text(self, templated):
        if templated and self.chance(0.6):
            if self.chance(0.5):
                return self.placeholder()
            return "".join(self.placeholder() if self.chance(0.5) else self.pick(TEXTS) for _ in range(self.r.randint(1, 4)))
        if self.chance(0.15):
            return "".join(self.pick(TEXTS) for _ in range(3))
        return self.pick(TEXTS)

    def character(self):
        r = self.r.random()
        if r < 0.35:
            return self.pick("abzAZ019 _-.,'\"\\#$&;|()<>{}[]*?~!%@^=+/:`\t\n\r")
        if r < 0.6:
            return self.pick(TEXTS)
        code = self.r.randrange(0x800) if r < 0.75 else self.r.randrange(0x800, 0xD800) if r < 0.9 else self.r.randrange(0xE000, 0x110000)
        return chr(code)

    def characters(self, most=8):
        return "".join(self.character() for _ in range(self.r.randint(0, most)))

    def number(self):
        return self.pick([
            lambda: self.pick(NUMBERS), lambda: self.r.uniform(-1, 1) * 10.0 ** self.r.randint(-320, 308),
            lambda: self.r.randint(-(10**30), 10**30), lambda: float(self.r.randint(-(10**17), 10**17)),
        ])()

    def rule_input(self, rule):
        """Returns an input for one of regenerate.RULES."""
        if rule == "str":
            return self.pick([self.characters, self.number, self.value, lambda: {self.characters(): [self.characters(), self.number(), self.value()]}])()
        if rule == "slug":
            return self.characters(self.pick([3, 8, 20, 60]))
        if rule == "split":
            return "".join(self.pick(SHELL) for _ in range(self.r.randint(0, 9)))
        if rule == "labels":
            return {self.characters(self.pick([2, 6, 40])): self.characters(self.pick([2, 6, 40])) for _ in range(self.r.randint(0, 5))}
        if rule == "int":
            text = self.pick(NUMBER_SIGNS) + self.pick(NUMBER_TEXTS) + self.pick(NUMBER_ENDS)
            return self.pick([text, text, self.number(), None, True, False, [], {}, "true"])
        if rule == "bool":
            return self.pick([*FLAGS, self.number(), None, True, False, [], {}])
        template = self.text(True) if self.chance(0.8) else "{{ " + "".join(self.pick("alo.[]01-kx$é ") for _ in range(self.r.randint(1, 6))) + " }}"
        values = {"a": self.value(), "l": [self.value(), {"x": self.value()}], "o": {"k": {"z": [1, self.value()]}, "": self.value()}}
        return {"template": template, "values": {name: self.value() for name in self.r.sample(NAMES, 6)} | values}

    def rule_cases(self, count):
        for i in range(count):
            rule = list(regenerate.RULES)[i % len(regenerate.RULES)]
            case = json.loads(json.dumps({"rule": rule, "input": self.rule_input(rule)}))
            case["output"] = regenerate.resolve_rule(case)
            if case["output"] not in (float("inf"), float("-inf")):
                yield case

    def name(self):
        """Returns a name that Prefect lets a flow or a deployment have."""
        return re.sub("[/%&<>]", "", self.text(False)) or "x"

    def value(self, templated=False, depth=0):
        r = self.r.random()
        if r < 0.45 or depth > 3:
            return self.text(templated)
        if r < 0.6:
            return self.pick(NUMBERS)
        if r < 0.72:
            return self.pick([None, True, False])
        if r < 0.84:
            return [self.value(templated, depth + 1) for _ in range(self.r.randint(0, 3))]
        if templated and self.chance(0.1):
            return {"$ref": self.pick([{"block_document_id": b["id"]} for b in self.blocks] + [{"block_document_id": None}, {}, "x", {"x": 1}])}
        return {self.pick(NAMES + ["k", "z", "x", "value"]): self.value(templated, depth + 1) for _ in range(self.r.randint(0, 3))}

    def strings(self, templated):
        return {self.pick(["A", "FOO", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "x", "X-y", "prefect.io/x", "é", "1a", "", "İ", *TEXTS]): (
            self.text(templated) if self.chance(0.85) else self.value(templated)
        ) for _ in range(self.r.randint(0, 4))}

    def selector(self):
        s = {"secret": self.pick(["s", "projects/p/secrets/s", ""]), "version": self.pick(["latest", "1"])}
        if self.chance(0.1):
            s[self.pick(["secret", "version", "x"])] = self.value()
        return s

    def job_variable(self, name):
        """Returns a value for the job variable, mostly one that it takes."""
        templated = self.chance(0.3)
        if self.chance(0.12):
            return self.value(templated)
        if name in ("env", "labels"):
            return self.strings(templated)
        if name in ("command", "image", "memory", "cpu", "region", "name", "service_account_name", "vpc_connector_name", "launch_stage"):
            return self.text(templated)
        if name == "args":
            return [self.text(templated) for _ in range(self.r.randint(0, 3))] if self.chance(0.6) else self.text(templated)
        if name == "cloudsql_instances":
            return [self.text(templated) for _ in range(self.r.randint(0, 2))]
        if name in ("timeout", "max_retries"):
            return self.pick([*NUMBERS, "900", "+5", "1e2", " 60 ", "6_0", "60.0", "60.", "٦٠", "0x10", "007"])
        if name == "keep_job":
            return self.pick([True, False, "true", "YES", "On", "t", " true", 1, 0, 1.0, 0.0, 2, "2", None])
        if name == "env_from_secrets":
            return {self.pick(["A", "FOO", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"]): self.selector() for _ in range(self.r.randint(0, 2))}
        if name.endswith("_secret"):
            return self.selector()
        if name == "credentials":
            c = {"project": self.pick(["p", None, "", 5]), "service_account_info": self.pick([None, {}, {"project_id": "q"}, '{"project_id": "q"}', "x"])}
            return {k: c[k] for k in c if self.chance(0.6)}
        return self.value(templated)

    def job_variables(self, given):
        values = dict(given or {})
        for _ in range(self.r.randint(0, 5)):
            name = self.pick(NAMES)
            if self.chance(0.15):
                values[self.pick([*PATHS, "env.B", "env.FOO.x", "o.k", "labels.a.b"])] = self.text(True) if self.chance(0.6) else self.value(True)
            else:
                values[name] = self.job_variable(name)
        return values

    def mutate(self, tree, path=()):
        """Changes some of what is in a job_configuration."""
        if isinstance(tree, dict):
            for k in list(tree):
                if self.chance(0.02):
                    del tree[k]
                elif self.chance(0.03):
                    tree[k] = self.value(True)
                else:
                    tree[k] = self.mutate(tree[k], (*path, k))
            if self.chance(0.03):
                tree[self.pick([self.placeholder(), self.characters(), "a.b", "env.A", "l[0]", "$A"])] = self.value(True)
            if path and self.chance(0.08):
                tree[self.pick(["labels", "annotations", "volumes", "env", "args", "x-probe", "vpcAccess", "$ref", "volumeMounts"])] = self.value(True)
        elif isinstance(tree, list):
            tree = [self.mutate(v, (*path, "")) for v in tree]
            if self.chance(0.05):
                tree.append(self.value(True))
        elif isinstance(tree, str) and self.chance(0.04):
            return self.text(True)
        return tree

    def vector(self, base):
        v = json.loads(json.dumps({k: x for k, x in base.items() if k not in regenerate.OUTPUTS}))
        self.blocks = list(v["block_documents"])
        for slug in ("secret", "json", "t-1"):
            for name in ("b", "b1"):
                data = {"value": self.value(True)} if self.chance(0.5) else self.value(True)
                if not isinstance(data, dict):
                    data = {"value": data, "k": self.value()}
                self.blocks.append({"id": f"00000000-0000-4000-8000-{self.r.randrange(10**12):012}", "block_type_slug": slug, "name": name, "data": data})
        v["block_documents"] = self.blocks
        v["variables"] = {**v["variables"], "v": self.value(True), "v1": self.value(True)}
        v["environment"] = {**v["environment"], **ENVIRONMENT}
        if self.chance(0.6):
            v["deployment_job_variables"] = self.job_variables(v["deployment_job_variables"])
        if self.chance(0.6):
            v["flow_run_job_variables"] = self.job_variables(v["flow_run_job_variables"])
        if self.chance(0.4):
            v["base_job_template"]["job_configuration"] = self.mutate(v["base_job_template"]["job_configuration"])
        properties = v["base_job_template"]["variables"].get("properties")
        if properties and self.chance(0.4):
            name = self.pick([n for n in NAMES if n in properties] + ["a", "o"])
            properties.setdefault(name, {})["default"] = self.job_variable(name)
        if properties and self.chance(0.3):
            properties[self.pick(list(properties))] = self.pick([{}, {"default": self.pick([None, False, 0, "", [], {}, 0.0, "{{ a }}"])}, {"type": "string"}])
        if self.chance(0.4):
            v["flow_run"]["name"] = self.text(False) or "x"
        if self.chance(0.2):
            v["flow"]["name"] = self.name()
        if v["deployment"] and self.chance(0.3):
            v["deployment"]["updated"] = self.pick([None, "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.5Z", "2026-01-02T03:04:05.000001+02:00"])
            v["deployment"]["name"] = self.name()
        if self.chance(0.1):
            v["deployment"] = None
        if self.chance(0.2):
            v["worker"]["id"] = self.pick([None, "77777777-7777-4777-8777-777777777777"])
        if self.chance(0.3):
            v["worker"]["name"] = self.pick([None, self.characters(70) or "w"])
        if self.chance(0.3):
            v["work_pool"]["name"] = re.sub("[/%&<>\\\\]", "", self.characters(70)) or "x"
        if self.chance(0.3):
            v["settings"] = {**v["settings"], self.pick(["A", "FOO", "PREFECT_API_KEY", "é", ""]): self.characters()}
        if self.chance(0.2):
            v["adc_project"] = self.pick([None, "", "other"])
        v["description"] = "random"
        return v


def main():
    directory, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    directory.mkdir(parents=True, exist_ok=True)
    bases = [json.loads(p.read_text()) for p in sorted((regenerate.HERE / "vectors").glob("*.json"))]
    failed = 0
    for i in range(count):
        maker = Maker(f"{seed}/{i}")
        while True:
            vector = maker.vector(maker.pick(bases))
            outputs = regenerate.resolve(vector)
            if "expected_error" not in outputs or maker.chance(0.3):
                break
        failed += "expected_error" in outputs
        (directory / f"random-{seed}-{i}.json").write_text(json.dumps(vector | outputs, indent=1, ensure_ascii=False) + "\n")
    rules = directory / "rules"
    rules.mkdir(exist_ok=True)
    for name in ENVIRONMENT:
        os.environ.pop(name, None)  # {{ $HOME }} is empty to a rule
    cases = list(Maker(seed).rule_cases(10 * count))
    (rules / f"rules-{seed}.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
    print(f"{count} random vectors, {failed} of them errors at Prefect")


if __name__ == "__main__":
    main()
