package containerlog

import (
	"strings"
	"testing"
)

func TestWhatLooksLikeASecretIsTakenOut(t *testing.T) {
	for line, want := range map[string]string{
		"connect to postgresql+psycopg2://etl:hunter2@db:5432/x":  "connect to postgresql+psycopg2://(secret)@db:5432/x",
		"redis://:hunter2@cache":                                  "redis://(secret)@cache",
		"Authorization: Bearer abcdef0123456789":                  "Authorization: Bearer (secret)",
		"authorization: basic YWRtaW46cGFzcw==":                   "authorization: basic (secret)",
		"PREFECT_API_KEY=pnu_0123456789abcdef":                    "PREFECT_API_KEY=(secret)",
		"using key pnb_0123456789abcdef now":                      "using key (secret) now",
		"PREFECT_API_AUTH_STRING='admin:pass'":                    "PREFECT_API_AUTH_STRING=(secret)",
		`{"db_password": "hunter2", "rows": 3}`:                   `{"db_password": (secret), "rows": 3}`,
		`{'token': 'hun ter2', 'n': 1}`:                           `{'token': (secret), 'n': 1}`,
		`password: "with \" a quote" and more`:                    `password: (secret) and more`,
		"GET /v1?token=hunter2&page=2":                            "GET /v1?token=(secret)&page=2",
		"MY_SECRET = hunter2":                                     "MY_SECRET = (secret)",
		"AIzaSyA-0123456789abcdefghijklmnopqrstuv":                "(secret)",
		"ya29.a0Af_x-y":                                           "(secret)",
		"ghp_0123456789abcdefghij and glpat-0123456789abcdefghij": "(secret) and (secret)",
		"AKIAIOSFODNN7EXAMPLE":                                    "(secret)",
		"xoxb-123456789012-abc":                                   "(secret)",
		"sk_live_0123456789abcdefgh":                              "(secret)",
		"jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln":           "jwt (secret)",
		"aws_secret_access_key = wJalrXUtnFEMI/K7MDENG":           "aws_secret_access_key = (secret)",
		"Set-Cookie: session=hunter2":                             "Set-Cookie: (secret)",
		// What is none stays as it is.
		"ValueError: expected 3 rows, got 2":                        "ValueError: expected 3 rows, got 2",
		"see https://docs.example.com/a:b?x=1":                      "see https://docs.example.com/a:b?x=1",
		"12:00:01.5 | INFO | prefect.engine - Created run 'a' at b": "12:00:01.5 | INFO | prefect.engine - Created run 'a' at b",
		"read 3 tokens of the text":                                 "read 3 tokens of the text",
	} {
		if got := redacted(line); got != want {
			t.Errorf("%s\nbecame %s\nwant   %s", line, got, want)
		}
	}
}

func TestAPrivateKeyIsTakenOutToItsEnd(t *testing.T) {
	const begin, end = "k: -----BEGIN RSA PRIVATE KEY-----", "-----END RSA PRIVATE KEY-----"
	for name, test := range map[string]struct{ lines, want string }{
		"whole":                    {"a|" + begin + "|MII|" + end + "|b", "a|(secret)|(secret)|(secret)|b"},
		"in one line":              {"a|" + begin + `\nMII\n` + end + "|b", "a|(secret)|b"},
		"without its beginning":    {"MII|MII|" + end + "|b", "(secret)|(secret)|(secret)|b"},
		"its end alone":            {end + "|b", "(secret)|b"},
		"without its end":          {"a|" + begin + "|MII", "a|(secret)|(secret)"},
		"two, of one no beginning": {"MII|" + end + "|b|" + begin + "|MII|" + end + "|c", "(secret)|(secret)|b|(secret)|(secret)|(secret)|c"},
		"two, in one line":         {"MII|" + end + `\n` + begin + "|MII|" + end + "|c", "(secret)|(secret)|(secret)|(secret)|c"},
		"a public one":             {"a|-----BEGIN PUBLIC KEY-----|MII|-----END PUBLIC KEY-----", "a|-----BEGIN PUBLIC KEY-----|MII|-----END PUBLIC KEY-----"},
	} {
		t.Run(name, func(t *testing.T) {
			var lines []Line
			for text := range strings.SplitSeq(test.lines, "|") {
				lines = append(lines, Line{Text: text})
			}
			redact(lines)
			var got []string
			for _, l := range lines {
				got = append(got, l.Text)
			}
			if s := strings.Join(got, "|"); s != test.want {
				t.Errorf("%s\nwant %s", s, test.want)
			}
		})
	}
}
