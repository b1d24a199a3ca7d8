"""How the page looks."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2530; --soft: #66717e; --line: #dfe4ea; --card: #ffffff; --page: #f5f7f9;
  --accent: #0b6e5f; --tint: #e3f3ef; --gone: #e4e8ed; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --soft: #9aa5b1; --line: #313a45; --card: #1b222b;
  --page: #12171d; --accent: #5cc8b3; --tint: #17352f; --gone: #2d3641; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 0 0 12px; }
h3 { font-size: 14px; margin: 20px 0 8px; color: var(--soft); font-weight: 600; }
p { margin: 0 0 12px; color: var(--soft); }
section, details { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 22px 24px;
  margin-top: 20px; }
.headlines { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 16px; margin-top: 24px; }
.headline { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px; }
.headline b { display: block; font-size: 36px; line-height: 1.15; color: var(--accent); font-weight: 650;
  font-variant-numeric: tabular-nums; }
.headline span { display: block; font-weight: 600; }
.headline small { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 8px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; font-size: 13px; vertical-align: bottom; }
thead th[colspan] { text-align: center; }
tbody tr:last-child > * { border-bottom: 0; }
tbody th, thead tr:first-child th:first-child, .words { text-align: left; }
.words { white-space: normal; }
tbody th { font-weight: 600; }
tbody th small { display: block; font-weight: 400; font-size: 12px; color: var(--soft); }
td.best { background: var(--tint); color: var(--accent); font-weight: 700; }
.layer { display: grid; grid-template-columns: minmax(90px, 180px) 1fr 80px; gap: 12px; align-items: center;
  font-size: 13px; line-height: 22px; }
.layer code { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-size: 12.5px; }
.layer .bar { height: 12px; border-radius: 3px; background: var(--gone); overflow: hidden; }
.layer .bar i { display: block; height: 100%; background: var(--accent); }
.layer .count { text-align: right; font-variant-numeric: tabular-nums; color: var(--soft); }
.key i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin: 0 5px 0 14px;
  background: var(--gone); vertical-align: -1px; }
.key i.kept { background: var(--accent); margin-left: 0; }
img { display: block; width: 100%; border-radius: 8px; background: #ffffff; }
figure { margin: 0 0 20px; }
figcaption { color: var(--soft); font-size: 13px; margin-bottom: 6px; }
summary { cursor: pointer; font-weight: 600; }
details > :nth-child(2) { margin-top: 14px; }
pre { margin: 0; overflow-x: auto; font-size: 12.5px; line-height: 1.45; }
footer { margin-top: 28px; color: var(--soft); font-size: 13px; }
@media print { body { background: #fff; } section, details, .headline { break-inside: avoid; } }
""".strip()
