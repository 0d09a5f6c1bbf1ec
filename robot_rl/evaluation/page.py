"""The report's frame: one HTML file with its style sheet, nothing fetched from anywhere."""

from __future__ import annotations

from html import escape

STYLE = """
:root { color-scheme: light dark; --ink:#1c2330; --soft:#5c6675; --paper:#fbfbfa; --card:#fff; --line:#e3e6ea; --grid:#e6e9ed;
  --zero:#8a94a3; --base:#64748b; --steered:#1d5fd1; --random:#a8620c; --good:#15803d; --bad:#c2312b; --code:#f3f4f6 }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ee; --soft:#9aa5b4; --paper:#12151a; --card:#1a1f26; --line:#2b323c;
  --grid:#2a313b; --zero:#748093; --base:#a3b1c4; --steered:#6ea6ff; --random:#e3a34f; --good:#4cc27a; --bad:#f2726b; --code:#222831 } }
* { box-sizing:border-box }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
  -webkit-text-size-adjust:100% }
main { max-width:1040px; margin:0 auto; padding:40px 24px 72px }
h1 { font-size:30px; line-height:1.2; margin:0 0 12px; letter-spacing:-.015em; text-wrap:balance }
h2 { font-size:20px; margin:44px 0 4px; letter-spacing:-.01em }
h3 { font-size:15px; margin:20px 0 6px }
p { margin:0 0 12px; max-width:72ch } .lead { font-size:17px } .soft,.note { color:var(--soft) } .note { font-size:14px }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(200px,1fr)); gap:14px; margin:24px 0 0 }
.card { background:var(--card); border:1px solid var(--line); border-radius:12px; padding:14px 18px }
.card .what { font-size:14px; color:var(--soft) } .card .big { font-size:34px; line-height:1.2; font-weight:650; letter-spacing:-.02em }
.card .more { font-size:14px; color:var(--soft) } .card.main { border-color:var(--steered); border-width:2px; padding:13px 17px }
.big,td,.text,.ticks,.y,.more { font-variant-numeric:tabular-nums }
.grid { stroke:var(--grid) } .zero { stroke:var(--zero) } .bar { display:block; width:100%; height:14px; overflow:visible }
table { border-collapse:collapse; width:100%; font-size:15px; margin-top:10px }
th { text-align:left; font-weight:600; font-size:14px; color:var(--soft); border-bottom:1px solid var(--line); padding:6px 14px 6px 0 }
td { border-bottom:1px solid var(--line); padding:9px 14px 9px 0; vertical-align:top }
td .interval { color:var(--soft); font-size:13px; white-space:nowrap } td.rate { min-width:120px }
td.task { font-weight:600; white-space:nowrap }
td.gain .interval { display:block }
tr.total td { font-weight:600; border-bottom:0; border-top:2px solid var(--zero) } tr.total .interval { font-weight:400 }
.forest { display:grid; grid-template-columns:minmax(90px,auto) minmax(120px,1fr) auto; column-gap:16px; align-items:center;
  margin-top:12px; font-size:14px }
.forest .track { display:block; width:100% } .forest .text span { display:block; line-height:22px; white-space:nowrap }
.forest .total { font-weight:650 } .ticks { position:relative; height:18px; font-size:12px; color:var(--soft) }
.ticks span { position:absolute; transform:translateX(-50%); white-space:nowrap } .unit { font-size:12px; color:var(--soft) }
.charts { display:grid; grid-template-columns:repeat(auto-fill,minmax(280px,1fr)); gap:20px 28px; margin-top:8px }
.chart { margin:0; min-width:0 } .chart figcaption { font-size:14px; margin-bottom:12px; display:flex; flex-wrap:wrap; gap:2px 14px;
  align-items:baseline } .chart b { font-weight:600 } .chart em { font-style:normal; font-size:12px; color:var(--soft) }
.key i { display:inline-block; width:14px; height:3px; border-radius:2px; margin-right:6px; vertical-align:middle }
.plot { display:grid; grid-template-columns:44px 1fr; grid-template-rows:150px 18px auto }
.wide .plot { grid-template-rows:240px 18px auto }
.plot .y { position:relative; font-size:12px; color:var(--soft) }
.plot .y span { position:absolute; right:8px; transform:translateY(-50%) }
.plot svg { width:100%; height:100%; overflow:visible } .plot svg * { vector-effect:non-scaling-stroke }
.plot .ticks { grid-column:2; margin-top:3px } .plot .unit { grid-column:2; text-align:center; padding-top:3px }
.pairs { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr)); gap:26px 28px; margin-top:14px }
.pair .say { font-weight:600; margin-bottom:6px } .pair .say span { display:block; font-weight:400; color:var(--soft); font-size:14px }
.pair .two { display:grid; grid-template-columns:1fr 1fr; gap:12px }
.clip { margin:0; font-size:14px; min-width:0 }
.clip video { display:block; width:100%; border-radius:8px; border:3px solid var(--edge) }
.clip figcaption { margin-top:4px } .clip figcaption b { color:var(--edge) }
dl { display:grid; grid-template-columns:max-content 1fr; gap:4px 20px; font-size:14px; margin:8px 0 } dt { color:var(--soft) }
dd { margin:0; overflow-wrap:anywhere }
pre { background:var(--code); border-radius:8px; padding:12px 14px; overflow-x:auto;
  font:13px/1.5 ui-monospace,Menlo,Consolas,monospace }
@media (max-width:640px) {
  main { padding:24px 16px 48px } h1 { font-size:25px } .lead { font-size:16px } .cards { grid-template-columns:1fr 1fr; gap:10px }
  .card { padding:11px 13px } .card.main { padding:10px 12px } .card .big { font-size:27px }
  thead { display:none }
  tr { display:grid; grid-template-columns:1fr 1fr; gap:2px 18px; padding:12px 0; border-bottom:1px solid var(--line) }
  td { border:0; padding:3px 0 } td.task { grid-column:1/-1 } td.gain { grid-column:1 } td.p { grid-column:2 }
  td.gain .interval { display:inline }
  td[data-name]::before { content:attr(data-name) " "; color:var(--soft); font-size:13px; font-weight:400 }
  tr.total td { border:0 } tr.total { border-top:2px solid var(--zero) }
  .forest { grid-template-columns:1fr auto; column-gap:10px } .forest .name { grid-column:1/-1; font-weight:600; margin-top:6px }
  .forest .unit { padding-left:8px }
  dl { grid-template-columns:1fr; gap:0 } dd { margin-bottom:8px }
  .pair .two { gap:8px } }
"""


def page(title: str, body: str, style: str = "") -> str:
    """A whole HTML document; `body` is HTML already, `title` is text, `style` is CSS that comes after the common one."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        # Nothing may be fetched, and the browser holds us to it.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; media-src data:; img-src data:\">"
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body><main>{body}</main></body></html>\n"
    )
