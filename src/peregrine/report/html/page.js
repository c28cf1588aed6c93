"use strict";
// Comfort only: everything on the page can be read without this.

// Light or dark, against the system's choice.
const root = document.documentElement;
const theme = document.createElement("button");
theme.className = "theme";
const isDark = () => root.dataset.theme
  ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
nameTheme();
document.querySelector(".top").append(theme);

// Copy buttons.
for (const box of document.querySelectorAll(".code")) {
  const button = document.createElement("button");
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const lines = box.querySelector("code").textContent.split("\n");
    await navigator.clipboard.writeText(lines.map((line) => line.replace(/^\$ /, "")).join("\n"));
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  box.append(button);
}

// Sortable tables: numbers by value (seconds and minutes, MiB and GiB alike), words by letter.
const factors = { GiB: 1024, min: 60 };
const valueOf = (cell) => {
  const text = cell ? cell.textContent.trim() : "";
  const found = text.replace(/,/g, "").match(/^[<>]?(-?\d[\d.]*(?:e[-+]?\d+)?)\s*(\w+)?/);
  return found ? Number(found[1]) * (factors[found[2]] || 1) : text;
};
const order = (a, b) => {
  const numbers = [typeof a === "number", typeof b === "number"];
  if (numbers[0] && numbers[1]) return a - b;
  if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1;
  return a.localeCompare(b, undefined, { numeric: true });
};
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.tabIndex = 0;
    head.append(button);
    const sort = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => (up ? 1 : -1) * order(valueOf(a.cells[column]), valueOf(b.cells[column])));
      table.tBodies[0].append(...rows);
    };
    button.addEventListener("click", sort);
  });
}

// Pointing at a line, its key or its legend fades the others.
for (const chart of document.querySelectorAll(".chart")) {
  const parts = [...chart.querySelectorAll("[data-key]")];
  const focus = (key) => {
    chart.toggleAttribute("data-focus", key !== null);
    parts.forEach((part) => part.classList.toggle("on", part.dataset.key === key));
  };
  parts.forEach((part) => {
    part.addEventListener("pointerenter", () => focus(part.dataset.key));
    part.addEventListener("pointerleave", () => focus(null));
  });
}

// Tips that follow the pointer.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
for (const spot of document.querySelectorAll("[data-tip]")) {
  spot.querySelector("title")?.remove(); // else the browser shows its own as well
  spot.addEventListener("pointerenter", (event) => {
    tip.textContent = spot.dataset.tip;
    tip.hidden = false;
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${event.clientY + 16}px`;
  });
  spot.addEventListener("pointerleave", () => { tip.hidden = true; });
}
