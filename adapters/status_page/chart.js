// The loss curve: thin line per epoch, thick moving average, axes for any width.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 48, right: 10, top: 8, bottom: 24 };

function draw(kind, attributes, parent, text) {
  const element = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// About `count` round numbers from `low` to `high`.
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const magnitude = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * magnitude).find((n) => n >= rough);
  const found = [];
  for (let n = Math.ceil(low / step) * step; n <= high + step * 1e-6; n += step) found.push(n);
  return found;
}

function movingAverage(points, width) {
  let sum = 0;
  const found = [];
  points.forEach(([epoch, loss], place) => {
    sum += loss;
    if (place >= width) sum -= points[place - width][1];
    if (place >= width - 1) found.push([epoch, sum / width]);
  });
  return found;
}

export class LossChart {
  constructor(box, readout) {
    this.box = box;
    this.readout = readout;
    this.points = [];
    this.epochs = 1;
    this.at = null;
    box.tabIndex = 0;
    new ResizeObserver(() => this.draw()).observe(box);
    box.addEventListener("pointermove", (event) => this.pointAt(event.clientX));
    box.addEventListener("pointerleave", () => this.choose(null));
    box.addEventListener("blur", () => this.choose(null));
    box.addEventListener("keydown", (event) => this.walk(event));
  }

  show(points, epochs) {
    this.points = points;
    this.epochs = Math.max(epochs || 1, points.length ? points[points.length - 1][0] : 1);
    if (this.at !== null) this.at = Math.min(this.at, points.length - 1);
    this.draw();
  }

  pointAt(clientX) {
    if (!this.points.length || !this.x) return;
    const left = this.box.getBoundingClientRect().left;
    let nearest = 0;
    this.points.forEach(([epoch], place) => {
      const gap = (n) => Math.abs(this.x(n) + left - clientX);
      if (gap(epoch) < gap(this.points[nearest][0])) nearest = place;
    });
    this.choose(nearest);
  }

  walk(event) {
    const last = this.points.length - 1;
    const from = this.at ?? last;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: last }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.choose(Math.max(0, Math.min(last, to)));
    // Announce the value only for keyboard users.
    this.box.setAttribute("aria-label", `${this.label()} ${this.readout.textContent}`);
  }

  choose(place) {
    this.at = place;
    this.draw();
  }

  label() {
    if (!this.points.length) return "Loss curve, no epoch yet";
    const [first, last] = [this.points[0], this.points[this.points.length - 1]];
    return (
      `Loss curve: from ${first[1].toFixed(4)} in epoch ${first[0]} ` +
      `to ${last[1].toFixed(4)} in epoch ${last[0]} of ${this.epochs}.`
    );
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.box;
    if (!width || !height) return;
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-hidden", "true");
    this.box.setAttribute("role", "img");
    this.box.setAttribute("aria-label", this.label());
    const losses = this.points.map(([, loss]) => loss);
    let low = Math.min(...losses);
    let high = Math.max(...losses);
    if (!losses.length) [low, high] = [0, 1];
    const room = (high - low || high || 1) * 0.08;
    [low, high] = [Math.max(0, low - room), high + room];
    const right = width - MARGIN.right;
    const bottom = height - MARGIN.bottom;
    const start = this.points.length ? Math.min(1, this.points[0][0]) : 0;
    const span = Math.max(1, this.epochs - start);
    this.x = (epoch) => MARGIN.left + ((epoch - start) / span) * (right - MARGIN.left);
    const y = (loss) => bottom - ((loss - low) / (high - low)) * (bottom - MARGIN.top);

    const levels = ticks(low, high, Math.max(3, Math.floor(height / 45)));
    const digits = Math.max(2, Math.min(6, 1 - Math.floor(Math.log10(high - low))));
    for (const level of levels) {
      const at = y(level);
      draw("line", { class: "grid", x1: MARGIN.left, x2: right, y1: at, y2: at }, svg);
      const place = { x: MARGIN.left - 8, y: at + 4, "text-anchor": "end" };
      draw("text", place, svg, level.toFixed(digits));
    }
    const whole = ticks(start, this.epochs, Math.max(2, Math.floor(width / 90))).filter(
      Number.isInteger
    );
    for (const epoch of whole) {
      const place = { x: this.x(epoch), y: height - 6, "text-anchor": "middle" };
      draw("text", place, svg, String(epoch));
    }
    const line = (points) =>
      points.map(([e, l], n) => `${n ? "L" : "M"}${this.x(e).toFixed(1)} ${y(l).toFixed(1)}`).join("");
    const window = Math.max(1, Math.floor(this.points.length / 10));
    if (window > 1) draw("path", { class: "raw", d: line(this.points) }, svg);
    draw("path", { class: "mean", d: line(movingAverage(this.points, window)) }, svg);

    const chosen = this.at === null ? null : this.points[this.at];
    const marked = chosen ?? this.points[this.points.length - 1];
    if (chosen) {
      const at = this.x(chosen[0]);
      draw("line", { class: "cursor", x1: at, x2: at, y1: MARGIN.top, y2: bottom }, svg);
    }
    if (marked) {
      draw("circle", { class: "mark", cx: this.x(marked[0]), cy: y(marked[1]), r: 4.5 }, svg);
      this.readout.textContent = `epoch ${marked[0]}: ${marked[1].toFixed(4)}`;
    } else {
      this.readout.textContent = "";
    }
    this.box.replaceChildren(svg);
  }
}
