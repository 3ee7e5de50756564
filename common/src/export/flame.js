"use strict";
(() => {
  const svg = document.documentElement, byId = (id) => document.getElementById(id);
  const number = (name) => Number(svg.dataset[name]);
  const whole = number("whole"), margin = number("margin"), narrowest = number("narrowest");
  const head = byId("head"), said = byId("said"), found = byId("found");
  const least = 3;

  const make = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };

  // Every frame: where it is, what it is called, and its element.
  const frames = [...byId("frames").children].map((group) => {
    const [start, width] = group.dataset.v.split(" ").map(Number);
    const rect = group.querySelector("rect");
    const [name, about] = group.querySelector("title").textContent.split("\n");
    return { group, rect, text: group.querySelector("text"), name, about, start, width, y: Number(rect.getAttribute("y")) };
  });
  const frameOf = new Map(frames.map((frame) => [frame.group, frame]));
  const root = frames[0];
  const overlaps = (a, b) => a.start < b.start + b.width && b.start < a.start + a.width;

  // How wide a character is where this is shown.
  const ruler = make("text", { y: -99 });
  ruler.textContent = "m".repeat(100);
  byId("frames").append(ruler);
  const character = ruler.getComputedTextLength() / 100 || 6.65;
  ruler.remove();

  let zoomed = root;
  let current = root;

  const cut = (name, width) => {
    const room = Math.floor((width - 6) / character);
    if (name.length <= room) return name;
    const characters = [...name];
    if (characters.length <= room) return name;
    return room < least ? "" : characters.slice(0, room - 1).join("") + "…";
  };

  function layOut() {
    const room = svg.clientWidth || 1200;
    const scale = (room - 2 * margin) / (zoomed.width || whole);
    for (const frame of frames) {
      const { group, rect, y } = frame;
      const above = y < zoomed.y;
      const wanted = zoomed === root || frame === zoomed || (zoomed.width > 0 && overlaps(frame, zoomed));
      const left = above ? margin : margin + (frame.start - zoomed.start) * scale;
      const width = above || frame === zoomed ? room - 2 * margin : frame.width * scale;
      const shown = wanted && (frame === root || width >= narrowest);
      group.style.display = shown ? "" : "none";
      group.classList.toggle("above", above);
      if (!shown) continue;
      rect.setAttribute("x", left);
      rect.setAttribute("width", width);
      const label = cut(frame.name, width);
      if (label && !frame.text) {
        frame.text = make("text", { y: y + 12 });
        group.append(frame.text);
      }
      if (frame.text) {
        frame.text.textContent = label;
        frame.text.setAttribute("x", left + 3);
      }
    }
    found.setAttribute("x", room - margin);
    tools.setAttribute("x", room - margin - 360);
    reset.disabled = zoomed === root;
  }

  function zoom(frame) {
    zoomed = frame;
    layOut();
  }

  function tell(frame) {
    said.textContent = frame ? cut(`${frame.name} — ${frame.about}`, Math.max(300, (svg.clientWidth || 1200) - 220)) : " ";
  }

  function move(frame) {
    if (!frame) return;
    current.group.setAttribute("tabindex", "-1");
    current = frame;
    current.group.setAttribute("tabindex", "0");
    current.group.focus();
  }

  // The frames shown in a row, by where they begin.
  const rows = new Map();
  for (const frame of frames) {
    if (!rows.has(frame.y)) rows.set(frame.y, []);
    rows.get(frame.y).push(frame);
  }
  for (const row of rows.values()) row.sort((a, b) => a.start - b.start);
  const shownIn = (y) => (rows.get(y) || []).filter((frame) => frame.group.style.display !== "none");
  const step = frames.length > 1 ? Math.min(...[...rows.keys()].filter((y) => y > root.y)) - root.y : 1;

  function search() {
    let pattern = null;
    input.classList.remove("wrong");
    try {
      if (input.value) pattern = new RegExp(input.value, /[A-Z]/.test(input.value) ? "" : "i");
    } catch {
      input.classList.add("wrong");
    }
    // What is found below something found is not counted again.
    let sum = 0, count = 0;
    const covered = [];
    for (const frame of frames) {
      const hit = pattern !== null && pattern.test(frame.name);
      frame.group.classList.toggle("hit", hit);
      if (hit) {
        count += 1;
        covered.push(frame);
      }
    }
    covered.sort((a, b) => a.start - b.start || b.width - a.width);
    let end = -1;
    for (const frame of covered) {
      if (frame.start >= end) {
        sum += frame.width;
        end = frame.start + frame.width;
      }
    }
    found.textContent = pattern ? `${count} found: ${((100 * sum) / whole).toFixed(2)} %` : " ";
  }

  // The controls, which are of use only where this script runs.
  const tools = make("foreignObject", { y: 8, width: 360, height: 30 });
  const html = (name, properties) =>
    Object.assign(document.createElementNS("http://www.w3.org/1999/xhtml", name), properties);
  const box = html("div", { className: "tools" });
  const input = html("input", { type: "search", placeholder: "Search: regex ( / )", title: "Highlight frames whose names match" });
  const reset = html("button", { textContent: "Reset zoom", title: "Esc" });
  input.setAttribute("aria-label", "Search frames by regular expression");
  box.append(input, reset);
  tools.append(box);
  head.append(tools);
  input.addEventListener("input", search);
  reset.addEventListener("click", () => zoom(root));

  byId("frames").addEventListener("click", (event) => {
    const frame = frameOf.get(event.target.closest("g"));
    if (!frame) return;
    move(frame);
    zoom(frame);
  });
  byId("frames").addEventListener("mouseover", (event) => tell(frameOf.get(event.target.closest("g"))));
  byId("frames").addEventListener("mouseout", () => tell(frameOf.get(document.activeElement)));
  byId("frames").addEventListener("focusin", (event) => tell(frameOf.get(event.target.closest("g"))));

  addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      if (document.activeElement === input && input.value) {
        input.value = "";
        search();
      } else {
        zoom(root);
      }
      input.blur();
    } else if (document.activeElement === input) {
      return;
    } else if (event.key === "/" || (event.key === "f" && (event.ctrlKey || event.metaKey))) {
      event.preventDefault();
      input.focus();
      input.select();
    } else if (event.key === "Enter" || event.key === " ") {
      const frame = frameOf.get(document.activeElement);
      if (!frame) return;
      event.preventDefault();
      zoom(frame);
    } else if (event.key.startsWith("Arrow")) {
      event.preventDefault();
      const row = shownIn(current.y), at = row.indexOf(current);
      if (at < 0) move(zoomed);
      else if (event.key === "ArrowLeft") move(row[at - 1]);
      else if (event.key === "ArrowRight") move(row[at + 1]);
      else if (event.key === "ArrowUp") move(shownIn(current.y - step).find((frame) => overlaps(frame, current)));
      else move(shownIn(current.y + step).filter((frame) => overlaps(frame, current)).sort((a, b) => b.width - a.width)[0]);
    }
  });

  // As wide as the window, and with the heading in sight.
  svg.removeAttribute("viewBox");
  svg.setAttribute("width", "100%");
  svg.append(head);
  addEventListener("resize", layOut);
  addEventListener("scroll", () => head.setAttribute("transform", `translate(0 ${scrollY})`));
  root.group.setAttribute("tabindex", "0");
  layOut();
})();
