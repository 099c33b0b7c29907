"""Style sheet of the page: a light and a dark scheme, one column on a phone."""

__all__ = ["DARK", "LIGHT", "STYLE"]

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1b1f24",
    "soft": "#57606a",
    "rule": "#d0d7de",
    "track": "#e7ebef",
    "bar": "#0072b2",
    "strong": "#1b1f24",
    "line": "#b34700",
    "link": "#005a8c",
}
DARK = {
    "paper": "#14171b",
    "ink": "#e8ebee",
    "soft": "#a3adb8",
    "rule": "#3a424b",
    "track": "#2a3038",
    "bar": "#56b4e9",
    "strong": "#e8ebee",
    "line": "#f0a35e",
    "link": "#7cc4f0",
}
"""Colours by the names that the style sheet uses; Okabe and Ito's blue, legible on both papers."""


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


STYLE = f"""
:root{{color-scheme:light dark;{_variables(LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}
*{{box-sizing:border-box}}
html{{-webkit-text-size-adjust:100%;text-size-adjust:100%}}
body{{margin:0;background:var(--paper);color:var(--ink);
 font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}}
main{{max-width:72rem;margin:0 auto;padding:1.5rem 1.25rem 3rem}}
h1{{font-size:1.75rem;line-height:1.2;margin:.5rem 0 1rem}}
h2{{font-size:1.3rem;line-height:1.3;margin:0 0 .5rem}}
h3{{font-size:1rem;margin:0 0 .25rem;overflow-wrap:anywhere}}
p{{max-width:44rem;margin:0 0 1.25rem}}
section{{margin-top:2.5rem;padding-top:1.5rem;border-top:1px solid var(--rule)}}
a{{color:var(--link)}}
:focus-visible{{outline:2px solid var(--link);outline-offset:2px}}
nav ul{{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;padding:0;
 margin:1.25rem 0 0;list-style:none}}
nav a{{display:inline-block;padding:.25rem 0}}
dl{{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));
 gap:1rem 1.25rem;margin:0}}
dl div{{display:flex;flex-direction:column-reverse;justify-content:flex-end}}
dt{{color:var(--soft);font-size:.875rem;line-height:1.35}}
dd{{margin:0;font-size:1.2rem;font-weight:600}}
figure{{margin:0;min-width:0}}
figcaption{{color:var(--soft);font-size:.875rem;margin-top:.25rem}}
.grid{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));
 gap:1.75rem 2rem;margin-bottom:1.75rem}}
.pair,.wide{{display:grid;grid-template-columns:minmax(0,1fr);gap:1.75rem 3rem;align-items:start}}
.pair figure,.wide figure{{max-width:26rem}}
.scroll{{overflow-x:auto;max-width:100%}}
.scroll+.scroll{{margin-top:1.75rem}}
details{{margin-top:1rem}}
details .scroll{{max-height:24rem;overflow-y:auto;margin-top:.5rem}}
summary{{cursor:pointer;padding:.25rem 0}}
table{{border-collapse:collapse;font-size:.9375rem;font-variant-numeric:tabular-nums}}
caption{{text-align:left;color:var(--soft);font-size:.875rem;padding-bottom:.25rem;white-space:nowrap}}
th,td{{padding:.35rem 1.25rem .35rem 0;text-align:right;white-space:nowrap;vertical-align:top;
 border-bottom:1px solid var(--rule)}}
thead th{{font-weight:600;color:var(--soft)}}
tbody th{{font-weight:400}}
th:first-child,.words th,.words td{{text-align:left}}
th:first-child{{position:sticky;left:0;background:var(--paper)}}
.words td:last-child{{white-space:normal;min-width:16rem}}
td:last-child,th:last-child{{padding-right:0}}
svg{{display:block;width:100%;height:auto;overflow:visible;font-size:12px}}
svg text{{fill:var(--ink)}}
svg .value{{font-variant-numeric:tabular-nums;white-space:pre}}
svg .tick{{fill:var(--soft);font-size:11px}}
.track{{fill:var(--track)}}
.bar{{fill:var(--bar)}}
.bar.strong{{fill:var(--strong)}}
.mark{{fill:var(--paper);stroke:var(--line);stroke-width:2}}
.axis,.rule,.line,.curve{{fill:none}}
.axis{{stroke:var(--soft)}}
.rule{{stroke:var(--rule)}}
.line{{stroke:var(--line);stroke-width:1.5;stroke-dasharray:5 4}}
.curve{{stroke:var(--bar);stroke-width:2.25;stroke-linejoin:round}}
footer{{margin-top:2.5rem;padding-top:1rem;border-top:1px solid var(--rule);color:var(--soft);
 font-size:.875rem}}
footer p{{margin:0 0 .5rem;max-width:none}}
code,pre{{font:.9em ui-monospace,"DejaVu Sans Mono",monospace}}
pre{{margin:0 0 .75rem;padding:.5rem .75rem;background:var(--track);color:var(--ink);
 border-radius:4px}}
@media (max-width:30rem){{
 table{{font-size:.875rem}}
 th,td{{padding-right:.9rem}}
}}
@media (min-width:64rem){{
 .pair{{grid-template-columns:24rem minmax(0,1fr)}}
 .wide{{grid-template-columns:24rem 24rem}}
}}
"""
