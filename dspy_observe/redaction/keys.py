"""Access keys that say by their form whose they are: beginnings that providers document, as data.

A family is its provider, the literal its keys begin with, and a pattern for the rest. Lengths are taken a little
wider than documented: providers lengthen keys without notice, and a cut key still helps a thief.
"""
# ruff: noqa: E501 - one family, one line; the table is why this file is long

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final, NamedTuple

from dspy_observe.redaction.shape import Lowered

__all__ = ["FAMILIES", "KeyFamily", "api_keys"]

Span = tuple[int, int]


class KeyFamily(NamedTuple):
    """The form of one provider's keys."""

    provider: str
    """Whose key it is."""
    lead: str
    """The literal it begins with."""
    rest: str
    """A bounded regular expression for what follows."""


_W = r"[A-Za-z0-9_\-]"
_A = r"[A-Za-z0-9]"
_H = r"[0-9a-fA-F]"
_UUID = rf"{_H}{{8}}-{_H}{{4}}-{_H}{{4}}-{_H}{{4}}-{_H}{{12}}"


FAMILIES: Final[tuple[KeyFamily, ...]] = (
    # Models. Anthropic, OpenAI, DeepSeek, OpenRouter, Langfuse, Moonshot and many compatible servers share "sk-".
    KeyFamily("openai-style", "sk-", rf"{_W}{{18,240}}"),
    KeyFamily("langfuse", "pk-", rf"lf-{_W}{{20,60}}"),
    KeyFamily("openai session", "sess-", rf"{_A}{{38,60}}"),
    KeyFamily("google", "AIza", rf"{_W}{{33,40}}"),
    KeyFamily("google oauth", "ya29.", rf"{_W}{{20,400}}"),
    KeyFamily("google oauth client", "GOCSPX-", rf"{_W}{{20,40}}"),
    KeyFamily("google refresh", "1//0", rf"{_W}{{30,200}}"),
    KeyFamily("hugging face", "hf_", rf"{_A}{{30,44}}"),
    KeyFamily("hugging face organisation", "api_org_", rf"{_A}{{30,44}}"),
    KeyFamily("groq", "gsk_", rf"{_A}{{40,64}}"),
    KeyFamily("xai", "xai-", rf"{_A}{{60,100}}"),
    KeyFamily("perplexity", "pplx-", rf"{_A}{{32,64}}"),
    KeyFamily("replicate", "r8_", rf"{_A}{{30,44}}"),
    KeyFamily("fireworks", "fw_", rf"{_A}{{20,40}}"),
    KeyFamily("together", "tgp_v1_", rf"{_W}{{30,60}}"),
    KeyFamily("nvidia", "nvapi-", rf"{_W}{{40,100}}"),
    KeyFamily("cerebras", "csk-", rf"{_A}{{40,60}}"),
    KeyFamily("langchain", "lsv2_", rf"(?:pt|sk)_{_H}{{32}}_{_H}{{10}}"),
    KeyFamily("langchain", "ls__", rf"{_H}{{32}}"),
    KeyFamily("logfire", "pylf_", rf"v\d_[a-z]{{2}}_{_A}{{30,60}}"),
    KeyFamily("tavily", "tvly-", rf"{_W}{{20,60}}"),
    KeyFamily("weights and biases", "wandb_v1_", rf"{_W}{{30,120}}"),
    KeyFamily("pinecone", "pcsk_", rf"{_W}{{40,90}}"),
    KeyFamily("elevenlabs", "sk_", rf"{_H}{{48}}"),
    KeyFamily("volcengine access", "AKLT", rf"{_W}{{30,80}}"),
    KeyFamily("dify", "app-", rf"{_A}{{24}}"),
    KeyFamily("jina", "jina_", rf"{_W}{{40,80}}"),
    KeyFamily("firecrawl", "fc-", rf"{_H}{{32}}"),
    KeyFamily("voyage", "pa-", rf"{_W}{{40,60}}"),
    # Code and packages
    KeyFamily("github", "ghp_", rf"{_A}{{30,255}}"),
    KeyFamily("github", "gho_", rf"{_A}{{30,255}}"),
    KeyFamily("github", "ghu_", rf"{_A}{{30,255}}"),
    KeyFamily("github", "ghs_", rf"{_A}{{30,255}}"),
    KeyFamily("github", "ghr_", rf"{_A}{{30,255}}"),
    KeyFamily("github fine-grained", "github_pat_", r"[A-Za-z0-9_]{36,255}"),
    KeyFamily("gitlab", "glpat-", r"[A-Za-z0-9_\-.]{18,320}"),
    KeyFamily("gitlab", "glptt-", rf"{_H}{{40}}"),
    KeyFamily("gitlab", "gldt-", rf"{_W}{{20,40}}"),
    KeyFamily("gitlab", "glrt-", r"[A-Za-z0-9_\-.]{20,60}"),
    KeyFamily("gitlab", "glrtr-", rf"{_W}{{20,60}}"),
    KeyFamily("gitlab", "glcbt-", rf"{_W}{{20,60}}"),
    KeyFamily("gitlab", "glft-", rf"{_W}{{20,60}}"),
    KeyFamily("gitlab", "glffct-", rf"{_W}{{20,60}}"),
    KeyFamily("gitlab", "glimt-", rf"{_W}{{20,60}}"),
    KeyFamily("gitlab", "glagent-", rf"{_W}{{40,80}}"),
    KeyFamily("gitlab", "glsoat-", rf"{_W}{{20,60}}"),
    KeyFamily("gitlab", "gloas-", rf"{_W}{{40,80}}"),
    KeyFamily("gitlab", "_gitlab_session=", rf"{_A}{{30,40}}"),
    KeyFamily("gitlab", "GR1348941", rf"{_W}{{20,30}}"),
    KeyFamily("bitbucket", "ATBB", rf"{_A}{{24,60}}"),
    KeyFamily("bitbucket", "ATCTT3", r"[A-Za-z0-9_\-=]{60,240}"),
    KeyFamily("atlassian", "ATATT3", r"[A-Za-z0-9_\-=]{60,240}"),
    KeyFamily("npm", "npm_", rf"{_A}{{30,60}}"),
    KeyFamily("pypi", "pypi-", rf"AgE{_W}{{30,1000}}"),
    KeyFamily("rubygems", "rubygems_", rf"{_H}{{48}}"),
    KeyFamily("crates", "cio", rf"{_A}{{32}}"),
    KeyFamily("nuget", "oy2", r"[a-z0-9]{43}"),
    KeyFamily("clojars", "CLOJARS_", rf"{_A}{{60}}"),
    KeyFamily("docker", "dckr_pat_", rf"{_W}{{20,60}}"),
    KeyFamily("docker", "dckr_oat_", rf"{_W}{{20,60}}"),
    KeyFamily("artifactory", "AKCp", rf"{_A}{{60,80}}"),
    KeyFamily("artifactory", "cmVmd", rf"{_A}{{59}}"),
    KeyFamily("sourcegraph", "sgp_", rf"(?:(?:{_H}{{16}}|local)_)?{_H}{{40}}"),
    KeyFamily("sonarqube", "sqp_", rf"{_A}{{40}}"),
    KeyFamily("sonarqube", "squ_", rf"{_A}{{40}}"),
    KeyFamily("sonarqube", "sqa_", rf"{_A}{{40}}"),
    KeyFamily("buildkite", "bkua_", rf"{_A}{{40}}"),
    KeyFamily("circleci", "CCIPAT_", rf"{_W}{{40,90}}"),
    KeyFamily("circleci", "CCIPRJ_", rf"{_W}{{40,90}}"),
    KeyFamily("gitea", "gta_", rf"{_H}{{40}}"),
    KeyFamily("snyk", "snyk_", rf"[a-z]{{2,5}}\.{_W}{{20,120}}"),
    KeyFamily("postman", "PMAK-", rf"{_H}{{24}}-{_H}{{34}}"),
    KeyFamily("readme", "rdme_", r"[a-z0-9]{60,80}"),
    KeyFamily("linear", "lin_api_", rf"{_A}{{32,48}}"),
    KeyFamily("linear", "lin_oauth_", rf"{_A}{{32,64}}"),
    KeyFamily("notion", "ntn_", rf"{_A}{{40,60}}"),
    KeyFamily("notion", "secret_", rf"{_A}{{40,50}}"),
    KeyFamily("figma", "figd_", rf"{_W}{{38,60}}"),
    KeyFamily("airtable", "pat", rf"{_A}{{14}}\.{_H}{{64}}"),
    KeyFamily("typeform", "tfp_", r"[A-Za-z0-9_\-.=]{40,70}"),
    KeyFamily("frame.io", "fio-u-", r"[A-Za-z0-9_\-=]{60,70}"),
    KeyFamily("asana", "asana_pat_", rf"{_W}{{20,80}}"),
    # Clouds
    KeyFamily("aws", "AKIA", r"[A-Z0-9]{16}"),
    KeyFamily("aws", "ASIA", r"[A-Z0-9]{16}"),
    KeyFamily("aws", "ABIA", r"[A-Z0-9]{16}"),
    KeyFamily("aws", "ACCA", r"[A-Z0-9]{16}"),
    KeyFamily("aws", "A3T", r"[A-Z0-9]{17}"),
    KeyFamily("aws bedrock", "ABSK", r"[A-Za-z0-9+/]{100,270}={0,2}"),
    KeyFamily("aws bedrock", "bedrock-api-key-", r"[A-Za-z0-9+/=]{40,1000}"),
    KeyFamily("aws marketplace", "amzn.mws.", _UUID),
    KeyFamily("aws appsync", "da2-", r"[a-z0-9]{26}"),
    KeyFamily("amazon oauth", "amzn1.", rf"(?:application-oa2-client|oa2-cs\.v1)\.{_H}{{32,64}}"),
    KeyFamily("alibaba", "LTAI", rf"{_A}{{12,24}}"),
    KeyFamily("tencent", "AKID", rf"{_A}{{32}}"),
    KeyFamily("digitalocean", "dop_v1_", rf"{_H}{{64}}"),
    KeyFamily("digitalocean", "doo_v1_", rf"{_H}{{64}}"),
    KeyFamily("digitalocean", "dor_v1_", rf"{_H}{{64}}"),
    KeyFamily("cloudflare", "v1.0-", rf"{_H}{{24}}-{_H}{{140,150}}"),
    KeyFamily("fly.io", "fo1_", rf"{_W}{{40,50}}"),
    KeyFamily("fly.io", "fm1", r"[ar]_[A-Za-z0-9+/]{80,600}={0,3}"),
    KeyFamily("fly.io", "fm2_", r"[A-Za-z0-9+/]{80,600}={0,3}"),
    KeyFamily("heroku", "HRKU-", rf"{_W}{{36,70}}"),
    KeyFamily("scalingo", "tk-us-", rf"{_W}{{48}}"),
    KeyFamily("databricks", "dapi", rf"{_H}{{32}}(?:-\d)?"),
    KeyFamily("planetscale", "pscale_", r"(?:tkn|oauth|pw|api)_[A-Za-z0-9_=.\-]{30,64}"),
    KeyFamily("supabase", "sbp_", rf"{_H}{{40}}"),
    KeyFamily("supabase", "sb_secret_", rf"{_W}{{20,60}}"),
    KeyFamily("neon", "napi_", rf"{_A}{{40,80}}"),
    KeyFamily("terraform", "atlasv1.", rf"{_W}{{40,90}}"),
    KeyFamily("pulumi", "pul-", rf"{_H}{{40}}"),
    KeyFamily("prefect", "pnu_", rf"{_A}{{36}}"),
    KeyFamily("prefect", "pnb_", rf"{_A}{{36}}"),
    KeyFamily("doppler", "dp.", rf"(?:pt|st|ct|sa|scim|audit)\.(?:[a-z0-9\-_]{{2,35}}\.)?{_A}{{40,44}}"),
    KeyFamily("vault", "hvs.", rf"{_W}{{20,300}}"),
    KeyFamily("vault", "s.", rf"(?=[A-Za-z]{{0,23}}\d){_A}{{24}}(?![A-Za-z0-9])"),
    KeyFamily("vault", "hvb.", rf"{_W}{{100,400}}"),
    KeyFamily("vault", "hvr.", rf"{_W}{{20,300}}"),
    KeyFamily("1password", "ops_", r"eyJ[A-Za-z0-9+/_\-]{200,1500}={0,3}"),
    KeyFamily("1password", "A3-", r"[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})-[A-Z0-9]{5}-[A-Z0-9]{5}-[A-Z0-9]{5}"),
    KeyFamily("age", "AGE-SECRET-KEY-", r"1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{50,60}"),
    KeyFamily("openshift", "sha256~", rf"{_W}{{40,46}}"),
    KeyFamily("tailscale", "tskey-", rf"{_W}{{16,120}}"),
    KeyFamily("clickhouse", "4b1d", rf"{_A}{{38}}"),
    KeyFamily("defined networking", "dnkey-", r"[a-z0-9=_\-]{26}-[a-z0-9=_\-]{52}"),
    KeyFamily("netlify", "nfp_", rf"{_A}{{36,40}}"),
    KeyFamily("render", "rnd_", rf"{_A}{{28,40}}"),
    KeyFamily("vercel blob", "vercel_blob_rw_", rf"{_A}{{16,30}}_{_A}{{24,40}}"),
    KeyFamily("adobe", "p8e-", rf"{_A}{{32}}"),
    KeyFamily("azure ad", "Q~", r"[A-Za-z0-9_~.\-]{31,36}"),
    KeyFamily("yandex", "AQVN", rf"{_W}{{35,40}}"),
    KeyFamily("yandex", "YCAJE", rf"{_W}{{20,40}}"),
    KeyFamily("yandex", "t1.", rf"{_W}{{20,400}}={{0,2}}\.{_W}{{86}}={{0,2}}"),
    KeyFamily("grafana", "glc_", r"[A-Za-z0-9+/]{32,400}={0,3}"),
    KeyFamily("grafana", "glsa_", rf"{_A}{{32}}_{_H}{{8}}"),
    KeyFamily("new relic", "NRAK-", r"[A-Za-z0-9]{24,32}"),
    KeyFamily("new relic", "NRJS-", rf"{_H}{{19}}"),
    KeyFamily("new relic", "NRII-", rf"{_W}{{32}}"),
    KeyFamily("new relic", "NRIQ-", rf"{_W}{{32}}"),
    KeyFamily("new relic", "NRRA-", rf"{_H}{{42}}"),
    KeyFamily("new relic", "NRSP-", rf"{_W}{{20,60}}"),
    KeyFamily("dynatrace", "dt0", rf"[a-z]\d\d\.{_A}{{24}}\.{_A}{{64}}"),
    KeyFamily("sentry", "sntrys_", r"eyJ[A-Za-z0-9+/=_]{60,500}"),
    KeyFamily("sentry", "sntryu_", rf"{_H}{{64}}"),
    KeyFamily("posthog", "phx_", rf"{_A}{{40,50}}"),
    KeyFamily("launchdarkly", "sdk-", _UUID),
    KeyFamily("launchdarkly", "api-", _UUID),
    KeyFamily("launchdarkly", "mob-", _UUID),
    KeyFamily("honeycomb", "hcaik_", rf"{_A}{{58}}"),
    KeyFamily("octopus", "API-", r"[A-Z0-9]{25,32}"),
    # Payments and commerce
    KeyFamily("stripe", "sk_live_", rf"{_A}{{10,250}}"),
    KeyFamily("stripe", "sk_test_", rf"{_A}{{10,250}}"),
    KeyFamily("stripe", "sk_prod_", rf"{_A}{{10,250}}"),
    KeyFamily("stripe", "rk_live_", rf"{_A}{{10,250}}"),
    KeyFamily("stripe", "rk_test_", rf"{_A}{{10,250}}"),
    KeyFamily("stripe", "rk_prod_", rf"{_A}{{10,250}}"),
    KeyFamily("stripe", "pk_live_", rf"{_A}{{10,250}}"),
    KeyFamily("stripe", "pk_test_", rf"{_A}{{10,250}}"),
    KeyFamily("stripe webhook", "whsec_", r"[A-Za-z0-9+/]{24,64}={0,2}"),
    KeyFamily("square", "sq0atp-", rf"{_W}{{22,60}}"),
    KeyFamily("square", "sq0csp-", rf"{_W}{{40,60}}"),
    KeyFamily("square", "sq0idp-", rf"{_W}{{20,60}}"),
    KeyFamily("square", "EAAA", rf"{_W}{{56,64}}"),
    KeyFamily("paypal", "access_token$production$", rf"[0-9a-z]{{16}}\${_H}{{32}}"),
    KeyFamily("plaid", "access-", rf"(?:sandbox|development|production)-{_UUID}"),
    KeyFamily("shopify", "shpat_", rf"{_H}{{32}}"),
    KeyFamily("shopify", "shpca_", rf"{_H}{{32}}"),
    KeyFamily("shopify", "shppa_", rf"{_H}{{32}}"),
    KeyFamily("shopify", "shpss_", rf"{_H}{{32}}"),
    KeyFamily("shippo", "shippo_", rf"(?:live|test)_{_H}{{40}}"),
    KeyFamily("flutterwave", "FLWSECK", rf"(?:_TEST)?-{_A}{{12,32}}(?:-X)?"),
    KeyFamily("flutterwave", "FLWPUBK", rf"(?:_TEST)?-{_A}{{12,32}}(?:-X)?"),
    KeyFamily("duffel", "duffel_", r"(?:test|live)_[A-Za-z0-9_\-=]{43}"),
    KeyFamily("easypost", "EZAK", rf"{_A}{{54}}"),
    KeyFamily("easypost", "EZTK", rf"{_A}{{54}}"),
    KeyFamily("lob", "live_", rf"(?:pub_)?{_H}{{31,35}}"),
    KeyFamily("lob", "test_", rf"(?:pub_)?{_H}{{31,35}}"),
    KeyFamily("razorpay", "rzp_live_", rf"{_A}{{10,24}}"),
    KeyFamily("razorpay", "rzp_test_", rf"{_A}{{10,24}}"),
    KeyFamily("coinbase", "organizations/", rf"{_UUID}/apiKeys/{_UUID}"),
    # Messages and social
    KeyFamily("slack", "xoxb-", rf"{_W}{{16,120}}"),
    KeyFamily("slack", "xoxp-", rf"{_W}{{16,120}}"),
    KeyFamily("slack", "xoxa-", rf"{_W}{{8,120}}"),
    KeyFamily("slack", "xoxr-", rf"{_W}{{8,120}}"),
    KeyFamily("slack", "xoxo-", rf"{_W}{{16,120}}"),
    KeyFamily("slack", "xoxs-", rf"{_W}{{16,120}}"),
    KeyFamily("slack", "xoxc-", rf"{_W}{{16,120}}"),
    KeyFamily("slack", "xoxd-", r"[A-Za-z0-9_\-%+/=]{16,300}"),
    KeyFamily("slack", "xoxe-", rf"{_W}{{16,200}}"),
    KeyFamily("slack", "xoxe.", rf"xox[bp]-\d-{_A}{{100,200}}"),
    KeyFamily("slack", "xapp-", rf"\d-{_W}{{16,160}}"),
    KeyFamily("slack webhook", "hooks.slack.com/", r"(?:services|workflows|triggers)/[A-Za-z0-9+/]{20,90}"),
    KeyFamily("discord webhook", "discord.com/api/webhooks/", rf"\d{{15,22}}/{_W}{{40,90}}"),
    KeyFamily("discord webhook", "discordapp.com/api/webhooks/", rf"\d{{15,22}}/{_W}{{40,90}}"),
    KeyFamily("teams webhook", "webhook.office.com/webhookb2/", r"[0-9a-z\-]{36}@[0-9a-z\-]{36}/IncomingWebhook/[0-9a-z]{32}/[0-9a-z\-]{36}"),
    KeyFamily("sendgrid", "SG.", rf"{_W}{{16,32}}\.{_W}{{16,64}}"),
    KeyFamily("brevo", "xkeysib-", rf"{_H}{{64}}-{_A}{{16}}"),
    KeyFamily("brevo", "xsmtpsib-", rf"{_H}{{64}}-{_A}{{16}}"),
    KeyFamily("mailgun", "key-", rf"{_A}{{32}}"),
    KeyFamily("mailgun", "pubkey-", rf"{_H}{{32}}"),
    KeyFamily("mailchimp", "-us", r"\d{1,2}(?![A-Za-z0-9])"),
    KeyFamily("discord", "M", rf"{_W}{{23,27}}\.{_W}{{6}}\.{_W}{{27,40}}"),
    KeyFamily("discord", "N", rf"{_W}{{23,27}}\.{_W}{{6}}\.{_W}{{27,40}}"),
    KeyFamily("discord", "O", rf"{_W}{{23,27}}\.{_W}{{6}}\.{_W}{{27,40}}"),
    KeyFamily("twilio", "SK", rf"{_H}{{32}}"),
    KeyFamily("facebook", "EAAC", rf"{_A}{{20,300}}"),
    KeyFamily("facebook", "EAAM", rf"{_A}{{80,300}}"),
    KeyFamily("facebook", "EAAB", rf"{_A}{{80,300}}"),
    KeyFamily("telegram", ":AA", rf"{_W}{{32,34}}"),
    KeyFamily("firebase", "AAAA", rf"{_W}{{7}}:{_W}{{130,160}}"),
    KeyFamily("mapbox", "sk.", rf"eyJ{_W}{{40,120}}\.{_W}{{20,24}}"),
    KeyFamily("mapbox", "pk.", rf"eyJ{_W}{{40,120}}\.{_W}{{20,24}}"),
    KeyFamily("dropbox", "sl.", r"[A-Za-z0-9_\-=.]{100,1400}"),
    KeyFamily("settlemint", "sm_", rf"(?:aat|pat|sat)_{_A}{{16}}"),
    KeyFamily("contentful", "CFPAT-", rf"{_W}{{40,50}}"),
    KeyFamily("okta", "SSWS ", rf"00{_W}{{40}}"),
    KeyFamily("thingsboard", "$tb_", rf"{_A}{{40}}"),
    KeyFamily("rootly", "rootly_", rf"{_H}{{64}}"),
    KeyFamily("beamer", "b_", r"[A-Za-z0-9=_/\-+]{44}"),
    KeyFamily("zuplo", "zpka_", rf"{_W}{{30,60}}"),
)  # fmt: skip
"""Sources: the providers' own documentation, and the rules published by gitleaks
(https://github.com/gitleaks/gitleaks) and secretlint (https://github.com/secretlint/secretlint), as facts only."""

_MARKS = "-_.:~/$="
_LEAD_END: Final = re.compile(rf"[{re.escape(_MARKS)}]")


def _split(
    families: tuple[KeyFamily, ...],
) -> tuple[dict[str, list[re.Pattern[str]]], list[tuple[str, re.Pattern[str]]], re.Pattern[str]]:
    """Families by what their leads have up to the first punctuation mark; those without one, and capitals, apart."""
    marked: dict[str, list[re.Pattern[str]]] = {}
    plain: list[tuple[str, re.Pattern[str]]] = []
    capital: dict[str, list[str]] = {}
    for family in families:
        mark = _LEAD_END.search(family.lead)
        whole = re.escape(family.lead) + family.rest
        if mark is not None and mark.start() > 0 and family.lead not in _LITERALS:
            marked.setdefault(family.lead[: mark.end()], []).append(re.compile(whole))
        elif family.lead[0].isupper() and family.lead not in _LITERALS:
            capital.setdefault(family.lead[0], []).append(re.escape(family.lead[1:]) + family.rest)
        else:
            plain.append((family.lead, re.compile(whole)))
    # One search for all that begin with a capital: capitals are rare, and the engine skips to the next one.
    together = "|".join(f"{first}(?:{'|'.join(rests)})" for first, rests in sorted(capital.items()))
    return marked, plain, re.compile(together)


_LITERALS = frozenset(
    {"Q~", "-us", "1//0", "hooks.slack.com/", "discord.com/api/webhooks/", "discordapp.com/api/webhooks/"}
)
_MARKED, _PLAIN, _CAPITALS = _split(FAMILIES)
_CAPITAL: Final = re.compile("[A-Z]")
_DRAWN: Final = re.compile("[A-Z0-9]")  # what every key has
_SPACED_LEAD: Final = "SSWS "  # the one lead that ends outside its token
_DIGIT_LEAD: Final = "dt0"  # soon followed by digits, which may be of any script and then end the token
_SIZES: Final = tuple(sorted({len(lead) for lead in _MARKED}))
_LAST: Final = "".join(sorted({lead[-2] for lead in _MARKED}))
# A mark after a letter that some lead has there, before ten characters of a token among which are digits or capitals.
_ANCHOR: Final = re.compile(
    rf"[\-_.~/$](?<=[{re.escape(_LAST)}][\-_.~/$])(?=[a-z_\-.]{{0,40}}[0-9A-Z])(?=[A-Za-z0-9_\-.$/]{{8}})"
)
_NAME: Final = re.compile(r"[a-z]{1,20}(?:[-_.][a-z0-9]{1,10}){0,30}$|[-_.a-z]{0,300}$")
_ESCAPE_BEFORE: Final = re.compile(r"(?:\\[nrtbf]|\\u[0-9a-fA-F]{4}|%[0-9A-Fa-f]{2})$")


def api_keys(text: str, lowered: Lowered) -> Iterable[Span]:
    """Keys of the families, at the beginning of a word. All but the space in one lead are inside long tokens."""
    windows = lowered.spans
    tokens = lowered.long_tokens if windows else ""
    if text.isascii():
        if _DRAWN.search(tokens) is None:
            tokens = ""
    elif _DIGIT_LEAD in text:
        tokens, windows = text, [(0, len(text))]
    capitals = _CAPITAL.search(tokens) is not None or ("W" in text and _SPACED_LEAD in text)
    return _api_keys(text, tokens, windows, capitals) if tokens or capitals else ()


def _api_keys(text: str, tokens: str, windows: list[Span], capitals: bool) -> Iterator[Span]:
    if tokens:
        yield from _marked(text, windows)
        for lead, pattern in _PLAIN:
            if lead in tokens:
                yield from _unmarked(text, lead, pattern)
    if capitals:
        yield from _unmarked(text, "", _CAPITALS)


def _marked(text: str, windows: list[tuple[int, int]]) -> Iterator[Span]:
    done = 0
    for anchor in chain.from_iterable(_ANCHOR.finditer(text, start, end) for start, end in windows):
        end = anchor.end()
        for size in _SIZES:
            families = _MARKED.get(text[end - size : end]) if end >= size else None
            if families is None or end - size < done or not starts_word(text, end - size):
                continue
            for family in families:
                match = family.match(text, end - size)
                if match is not None and _random(match.group()):
                    done = match.end()
                    yield match.span()
                    break


def _unmarked(text: str, lead: str, pattern: re.Pattern[str]) -> Iterator[Span]:
    for match in pattern.finditer(text):
        start = match.start()
        left = _LEFT.get(lead)
        if left is not None:
            before = left.search(text, max(0, start - 40), start)
            if before is None:
                continue
            start = before.start()
        if (starts_word(text, start) or "/" in lead) and _random(text[start : match.end()]):
            after = text[match.end() : match.end() + 1]
            if after.isascii() and after.isalnum() and (lead in _EXACT or _EXACT_CAPITAL.match(match.group())):
                continue
            yield start, match.end()


# What must stand before a literal that is not the beginning of its key.
_LEFT: Final = {
    ":AA": re.compile(r"(?<![0-9A-Za-z])[0-9]{8,10}$"),
    "Q~": re.compile(r"[A-Za-z0-9_~.]{3}[0-9]$"),
    "-us": re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{32}$"),
}
_EXACT: Final = frozenset({"cio", "oy2", "4b1d", "dapi", "pat"})
_EXACT_CAPITAL: Final = re.compile(
    r"SK[0-9a-f]|A(?:3T|KIA|SIA|BIA|CCA)"
)  # keys of one length, parts of longer words otherwise


def starts_word(text: str, at: int) -> bool:
    """Whether no ASCII letter or digit touches from the left; an escaped line break or ``%20`` may."""
    if at == 0:
        return True
    char = text[at - 1]
    if not (char.isascii() and (char.isalnum() or char in "_-")):
        return True
    return char.isalnum() and _ESCAPE_BEFORE.search(text, max(0, at - 6), at) is not None


def _random(key: str) -> bool:
    """Whether a key looks drawn, not written: a digit, or both cases; names such as ``sk-learn-extra`` have neither."""
    if any(map(str.isdigit, key)):
        return _NAME.match(key) is None
    return key != key.lower() and key != key.upper()
