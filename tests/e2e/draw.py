"""Draws a dashboard of deploy/observability from recorded answers of Prometheus as one HTML page, much as Grafana would: for a look at
what operators will see, without Grafana."""

import html
import math
import re
import time

COLUMN, UNIT, GAP = 57, 30, 6  # pixels: a column of the grid, a unit of height, between panels
PALETTE = ('#73bf69', '#f2cc0c', '#5794f2', '#ff9830', '#f2495c', '#b877d9', '#8ab8ff', '#fade2a', '#ff7383', '#96d98d')
COLORS = {'green': '#73bf69', 'dark-green': '#37872d', 'light-green': '#96d98d', 'super-light-green': '#c8f2c2', 'blue': '#8ab8ff',
          'orange': '#ff9830', 'dark-orange': '#fa6400', 'light-orange': '#ffb357', 'red': '#f2495c', 'light-red': '#ff7383',
          'yellow': '#fade2a', 'purple': '#b877d9'}
STYLE = '''body{margin:0;background:#111217;color:#ccccdc;font:12px "DejaVu Sans",sans-serif}
h1{font-size:17px;margin:10px 8px 2px}.about{margin:0 8px 8px;color:#8e8ea0}
.panel{position:absolute;background:#181b1f;border:1px solid #25272d;box-sizing:border-box;border-radius:2px;overflow:hidden}
.title{padding:4px 8px;font-weight:bold;white-space:nowrap}.legend{position:absolute;bottom:2px;line-height:16px;left:8px;right:8px;font-size:10.5px;
white-space:nowrap;overflow:hidden}.legend i{display:inline-block;width:12px;height:3px;margin:0 4px 3px 0}.legend span{margin-right:12px}
.number{position:absolute;inset:24px 0 0;display:flex;align-items:center;justify-content:center;white-space:nowrap}
.plot{position:absolute;left:0;top:0;width:100%;height:100%;font-size:10.5px}.empty{color:#6e6e80}.row{display:flex;align-items:center;margin:0 8px;height:21px}.row .name{width:42%;overflow:hidden;white-space:nowrap}
.row .bar{flex:1;background:#22252b;height:12px}.row .bar div{height:12px}.row .value{width:92px;text-align:right}'''


def scaled(value, steps, suffix, digits=3):
    for factor, prefix in steps:
        if abs(value) >= factor:
            return f'{value / factor:.{digits}g} {prefix}{suffix}'
    return f'{value:.{digits}g} {suffix}'


def formatted(value, unit, decimals=None):
    """As Grafana writes a value of this unit."""
    if not math.isfinite(value):
        return '–'
    if unit == 's':
        if value == 0:
            return '0 s'
        factor, name = next(((f, n) for f, n in ((60, 'min'), (1, 's'), (1e-3, 'ms')) if abs(value) >= f), (1e-6, 'µs'))
        return f'{value / factor:.3g} {name}'
    if unit == 'percentunit':
        return f'{100 * value:.{1 if decimals is None else decimals}f}%'.replace('.0%', '%')
    if unit == 'bytes':
        return scaled(value, ((2**40, 'Ti'), (2**30, 'Gi'), (2**20, 'Mi'), (2**10, 'Ki')), 'B')
    if unit == 'hertz':
        return scaled(value, ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')), 'Hz')
    if unit in ('watt', 'joule'):
        return scaled(value, ((1e6, 'M'), (1e3, 'k')), {'watt': 'W', 'joule': 'J'}[unit])
    if decimals is not None:
        number = f'{value:.{decimals}f}'
    elif value == int(value) and abs(value) < 1000:
        number = str(int(value))
    else:
        number = f'{value:.3g}' if abs(value) < 1000 else scaled(value, ((1e9, 'B'), (1e6, 'M'), (1e3, 'K')), '').strip()
    if unit == 'currencyUSD':
        return f'${number}'
    if unit == 'celsius':
        return f'{number} °C'
    if unit == 'reqps':
        return f'{number} req/s'
    return f"{number} {unit.removeprefix('suffix:').strip()}" if unit.startswith('suffix:') else number


def legend_of(target, labels):
    text = target['legendFormat']
    text = re.sub(r'{{(\w+)}}', lambda match: labels.get(match[1], ''), text).strip()
    return text or ', '.join(f'{key}={value}' for key, value in sorted(labels.items()) if key != '__name__') or 'value'


def named(panel, answers):
    """[(legend, points)] of all targets of a panel, finite points only."""
    series = []
    for target, answer in zip(panel['targets'], answers):
        for labels, values in answer:
            points = [(when, value) for when, value in values if math.isfinite(value)]
            if points:
                series.append((legend_of(target, labels), points))
    return series


def color_of(panel, value):
    color = None
    for step in panel['fieldConfig']['defaults']['thresholds']['steps']:
        if step['value'] is None or value >= step['value']:
            color = step['color']
    return COLORS[color]


def line_colors(panel, names):
    """Fixed by an override, or the next of the palette"""
    result, palette = [], iter(PALETTE * 9)
    for name in names:
        fixed = next((rule['properties'][0]['value']['fixedColor'] for rule in panel['fieldConfig']['overrides']
                      if re.search(rule['matcher']['options'].strip('/'), name)), None)
        result.append(COLORS.get(fixed, fixed) if fixed else next(palette))
    return result


def nice_step(span, parts=4):
    raw = span / parts
    power = 10 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)


def byte_step(span):
    raw, power = span / 4, 1
    while power < raw:
        power *= 2
    return power


def stacked(series):
    """The same with what lies below added, on all times that occur."""
    times = sorted({when for _, points in series for when, _ in points})
    below, result = dict.fromkeys(times, 0.0), []
    for name, points in series:
        own = dict(points)
        base = dict(below)
        for when in times:
            below[when] += own.get(when, 0.0)
        result.append((name, [(when, below[when]) for when in times], [(when, base[when]) for when in times]))
    return result


class Plot:
    """The inside of a panel with time to the right."""

    def __init__(self, panel, width, height, start, end):
        self.panel, self.start, self.end = panel, start, end
        self.left, self.right, self.top, self.bottom = 76, width - 12, 30, height - 46
        self.defaults = panel['fieldConfig']['defaults']

    def x(self, when):
        return self.left + (self.right - self.left) * (when - self.start) / (self.end - self.start)

    def y(self, value):
        return self.bottom - (self.bottom - self.top) * (value - self.low) / (self.high - self.low)

    def path(self, points):
        return 'M' + 'L'.join(f'{self.x(when):.1f} {self.y(value):.1f}' for when, value in points)

    def runs(self, points, step):
        """Split where samples are missing."""
        run = [points[0]]
        for point in points[1:]:
            if point[0] - run[-1][0] > 1.5 * step:
                yield run
                run = []
            run.append(point)
        yield run

    def scale(self, values):
        self.low = self.defaults.get('min', min(values))
        self.high = max(values)
        if 'max' in self.defaults:
            self.high = self.defaults['max']
        if self.high <= self.low:
            self.high = self.low + 1
        span = self.high - self.low
        self.step = byte_step(span) if self.defaults['unit'] == 'bytes' else nice_step(span)
        if self.defaults['unit'] == 'none' and self.defaults.get('decimals') == 0:
            self.step = max(1, self.step)
        if 'max' not in self.defaults:
            self.high = self.low + self.step * math.ceil(span * 1.02 / self.step)

    def grid(self):
        out = []
        for i in range(int((self.high - self.low) / self.step + 1.001)):
            value = self.low + i * self.step
            out.append(f'<line x1="{self.left}" x2="{self.right}" y1="{self.y(value):.1f}" y2="{self.y(value):.1f}" stroke="#2a2d33"/>'
                       f'<text x="{self.left - 6}" y="{self.y(value) + 4:.1f}" text-anchor="end">'
                       f'{html.escape(formatted(value, self.defaults["unit"]))}</text>')
        step = next(s for s in (5, 10, 15, 30, 60, 120, 300, 600, 1800) if (self.end - self.start) / s <= 7)
        when = math.ceil(self.start / step) * step
        while when <= self.end:
            near_corner = self.x(when) < self.left + 28  # where the lowest value stands
            out.append(f'<line x1="{self.x(when):.1f}" x2="{self.x(when):.1f}" y1="{self.top}" y2="{self.bottom}" stroke="#22252b"/>')
            out.append('' if near_corner else
                       f'<text x="{self.x(when):.1f}" y="{self.bottom + 14}" text-anchor="middle">'
                       f'{time.strftime("%H:%M:%S", time.gmtime(when))}</text>')
            when += step
        for limit in self.defaults['thresholds']['steps'] if self.defaults['custom']['thresholdsStyle']['mode'] == 'dashed' else []:
            if limit['value'] is not None and self.low <= limit['value'] <= self.high:
                y = self.y(limit['value'])
                out.append(f'<line x1="{self.left}" x2="{self.right}" y1="{y:.1f}" y2="{y:.1f}" stroke-dasharray="6 4" '
                           f'stroke="{COLORS[limit["color"]]}"/>')
        return ''.join(out)

    def svg(self, series, step):
        stacking = self.defaults['custom']['stacking']['mode'] == 'normal'
        layers = stacked(series) if stacking else [(name, points, None) for name, points in series]
        self.scale([value for _, points, _ in layers for _, value in points])
        out = [self.grid()]
        for color, (_, points, base) in zip(line_colors(self.panel, [name for name, _ in series]), layers):
            if base is not None:
                out.append(f'<path d="{self.path(points)}L{self.path(base[::-1])[1:]}Z" fill="{color}" fill-opacity=".35"/>')
            for run in self.runs(points, step):
                if len(run) == 1:
                    out.append(f'<circle cx="{self.x(run[0][0]):.1f}" cy="{self.y(run[0][1]):.1f}" r="1.5" fill="{color}"/>')
                else:
                    out.append(f'<path d="{self.path(run)}" fill="none" stroke="{color}" stroke-width="1.3"/>')
        return f'<svg class="plot" fill="#9fa0b0">{"".join(out)}</svg>'


def timeseries(panel, series, width, height, recording):
    names = [name for name, _ in series]
    legend = ''.join(f'<span><i style="background:{color}"></i>{html.escape(name)}</span>'
                     for color, name in zip(line_colors(panel, names), names))
    plot = Plot(panel, width, height, recording['start'], recording['end'])
    return f'{plot.svg(series, recording["step"])}<div class="legend">{legend}</div>'


def stat(panel, series, width, height, _):
    defaults = panel['fieldConfig']['defaults']
    by_name = panel['options']['textMode'] == 'name'
    texts = [name if by_name else formatted(points[-1][1], defaults['unit'], defaults.get('decimals')) for name, points in series]
    size = min(0.36 * (height - 24) * (1 if len(texts) == 1 else 0.7), 1.55 * width / max(len(text) for text in texts))
    inside = '<br>'.join(f'<span style="color:{color_of(panel, points[-1][1])}">{html.escape(text)}</span>'
                         for text, (_, points) in zip(texts, series))
    return f'<div class="number" style="font-size:{size:.0f}px;text-align:center"><div>{inside}</div></div>'


def bargauge(panel, series, width, height, _):
    defaults = panel['fieldConfig']['defaults']
    top = defaults.get('max', max(points[-1][1] for _, points in series)) or 1
    rows = []
    for name, points in series:
        value = points[-1][1]
        rows.append(f'<div class="row"><div class="name">{html.escape(name)}</div><div class="bar"><div style="background:'
                    f'{color_of(panel, value)};width:{100 * min(1, value / top):.1f}%"></div></div><div class="value">'
                    f'{html.escape(formatted(value, defaults["unit"], defaults.get("decimals")))}</div></div>')
    return ''.join(rows)


KINDS = {'timeseries': timeseries, 'stat': stat, 'bargauge': bargauge}


def page(dashboard, recording, note=''):
    """(HTML, width, height) of a dashboard; recording: start, end, step, and answers by panel id."""
    top, out, height = 58, [], 0
    for panel in dashboard['panels']:
        place = panel['gridPos']
        w, h = place['w'] * COLUMN - GAP, place['h'] * UNIT - GAP
        series = named(panel, recording['answers'][str(panel['id'])])
        if series:
            inside = KINDS[panel['type']](panel, series, w, h, recording)
        else:
            inside = f'<div class="number empty">{html.escape(panel["fieldConfig"]["defaults"].get("noValue", "No data"))}</div>'
        height = max(height, (place['y'] + place['h']) * UNIT)
        left, above = place['x'] * COLUMN + GAP, top + place['y'] * UNIT
        out.append(f'<div class="panel" style="left:{left}px;top:{above}px;width:{w}px;height:{h}px">'
                   f'<div class="title">{html.escape(panel["title"])}</div>{inside}</div>')
    text = (f'<!doctype html><meta charset="utf-8"><title>{html.escape(dashboard["title"])}</title><style>{STYLE}</style>'
            f'<h1>{html.escape(dashboard["title"])}</h1><p class="about">{html.escape(dashboard["description"])} {html.escape(note)}</p>'
            f'{"".join(out)}')
    return text, 24 * COLUMN + GAP, top + height + GAP
