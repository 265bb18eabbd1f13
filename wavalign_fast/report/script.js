// Values under the pointer in a chart, and one voice at a time. The page is complete without it.
(function () {
  "use strict";
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);

  function nearest(points, step) {
    return points.reduce((best, point) =>
      Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best);
  }

  function show(event, svg, frame, lines, cursor) {
    const box = svg.getBoundingClientRect();
    const [left, right, low, high] = frame.x;
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    const place = Math.min(right, Math.max(left, x));
    const step = low + (high - low) * (place - left) / (right - left);
    cursor.setAttribute("d", `M${place} ${frame.y[0]}V${frame.y[1]}`);
    tip.replaceChildren(`step ${Math.round(step)}`);
    for (const line of lines) {
      const row = document.createElement("div");
      row.className = `t${line.style}`;
      row.textContent = `${line.name} ${nearest(line.points, step)[1]}`;
      tip.append(row);
    }
    tip.hidden = false;
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, room)) + window.scrollX}px`;
    tip.style.top = `${event.clientY + 14 + window.scrollY}px`;
  }

  for (const svg of document.querySelectorAll("svg[data-lines]")) {
    const frame = JSON.parse(svg.dataset.frame);
    const lines = JSON.parse(svg.dataset.lines);
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
    cursor.setAttribute("class", "cursor");
    svg.append(cursor);
    svg.addEventListener("pointermove", (event) => show(event, svg, frame, lines, cursor));
    svg.addEventListener("pointerleave", () => {
      tip.hidden = true;
      cursor.removeAttribute("d");
    });
  }

  document.addEventListener("play", (event) => {
    for (const audio of document.querySelectorAll("audio")) {
      if (audio !== event.target) audio.pause();
    }
  }, true);
})();
