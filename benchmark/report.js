"use strict";
{
  const page = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  const sections = [...document.querySelectorAll("section[data-t]")];
  const text = (place) => data.texts[place];
  page.classList.add("scripted");

  /** An element; text is only ever set as text. */
  const make = (name, content = "", ...children) => {
    const node = document.createElement(name);
    node.textContent = content;
    node.append(...children);
    return node;
  };

  // Theme: what the system says, or what was chosen.
  const themes = ["system", "light", "dark"];
  const theme = document.getElementById("theme");
  const store = { get: () => { try { return localStorage.getItem("genrec-theme"); } catch { return null; } },
                  set: (value) => { try { localStorage.setItem("genrec-theme", value); } catch { /* not allowed here */ } } };
  const wear = (name) => {
    if (name === "system") delete page.dataset.theme; else page.dataset.theme = name;
    theme.textContent = `Theme: ${name}`;
    theme.value = name;
  };
  wear(themes.includes(store.get()) ? store.get() : "system");
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(theme.value) + 1) % themes.length];
    wear(next);
    store.set(next);
  });

  // Sorting: each header becomes a button; rows without a value stay last.
  const value = (row, column, kind) => {
    const cell = row.cells[column];
    if (kind === "text") return row.cells[0].textContent.trim().toLowerCase();
    return cell && cell.dataset.v !== undefined ? Number(cell.dataset.v) : null;
  };
  const sort = (header) => {
    const table = header.closest("table");
    const kind = header.dataset.k;
    const before = header.getAttribute("aria-sort");
    const first = kind === "high" ? "descending" : "ascending";
    const order = before === null ? first : before === "ascending" ? "descending" : "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows].map((row) => [value(row, header.cellIndex, kind), Number(row.dataset.r), row]);
    rows.sort(([a, i, x], [b, j, y]) =>
      (x.classList.contains("empty") - y.classList.contains("empty")) || ((a === null) - (b === null)) ||
      (a < b ? -sign : a > b ? sign : i - j));
    table.tBodies[0].append(...rows.map(([, , row]) => row));
  };
  for (const header of document.querySelectorAll(".board th[data-k]")) {
    const button = make("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sort(header));
  }

  // Filters: tables by what they are, rows by name and family.
  const form = document.querySelector(".filters");
  const filter = () => {
    const wanted = new FormData(form);
    const families = new Set(wanted.getAll("family"));
    const all = families.size === form.querySelectorAll("[name=family]").length;
    const name = wanted.get("text").trim().toLowerCase();
    let tables = 0, rows = 0, total = 0;
    for (const section of sections) {
      const fits = ["dataset", "protocol", "tier"].every((key) => !wanted.get(key) || section.dataset[key] === wanted.get(key));
      let shown = 0;
      for (const row of section.querySelector(".board").tBodies[0].rows) {
        const visible = (row.dataset.f ? families.has(row.dataset.f) : all) && row.cells[0].textContent.toLowerCase().includes(name);
        row.hidden = !visible;
        shown += visible;
        total += 1;
        for (const point of section.querySelectorAll(`.p[data-row="${row.dataset.r}"]`)) point.style.opacity = visible ? "" : "0.12";
      }
      section.hidden = !fits || !shown;
      if (!section.hidden) { tables += 1; rows += shown; }
    }
    form.querySelector("output").textContent = `${tables} of ${sections.length} tables, ${rows} of ${total} rows`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  filter();

  // Where a number comes from.
  const dialog = document.querySelector("dialog");
  const grid = (heads, lines) => {
    const body = make("tbody");
    for (const line of lines) body.append(make("tr", "", ...line.map((one) => make("td", one === null ? "" : String(one)))));
    return make("table", "", make("thead", "", make("tr", "", ...heads.map((one) => make("th", one)))), body);
  };
  const number = (one) => (one === null ? "" : (one / 10000).toFixed(4));
  const distinct = (runs, column) => [...new Set(runs.map((run) => text(run[column])))].join("; ");
  const facts = (pairs) => make("dl", "", ...pairs.filter(([, fact]) => fact).flatMap(([name, fact]) => [make("dt", name), make("dd", fact)]));
  const scrolled = (node) => { const box = make("div", "", node); box.style.overflowX = "auto"; return box; };
  const show = (table, [name, method, family, version, plugin, settings, users, metrics, runs, search], asked) => {
    const title = make("h2", name, make("small", `${table.dataset} · ${table.protocol} · tier ${table.tier} · ${users.toLocaleString("en")} users`));
    title.id = "d-title";
    const numbers = grid(["metric", "mean", "95% interval", "sd over seeds", "", "paper", "verdict"], metrics.map(
      ([metric, mean, low, high, sd, mark, printed, where, verdict]) => [text(metric), number(mean), `${number(low)} – ${number(high)}`, number(sd),
        ["", "tied with best", "best"][mark], printed === undefined ? "" : `${number(printed)} (${text(where)})`, verdict === undefined ? "" : text(verdict)]));
    metrics.forEach(([metric], place) => { if (text(metric) === asked) numbers.tBodies[0].rows[place].className = "asked"; });
    const made = grid(["run", "seed", "validation", "trained", "made (UTC)"], runs.map(
      ([id, seed, date, seconds, valid, metric]) => [id, seed, valid === null ? "" : `${text(metric)} ${number(valid)}`, `${seconds} s`, date]));
    document.getElementById("d").replaceChildren(title, scrolled(numbers), make("h3", "Runs"), scrolled(made), facts([
      ["records", `${table.dataset}/${text(method)}/${runs.length > 1 ? "RUN" : runs[0][0]}/run.json`],
      ["commit", distinct(runs, 6)], ["hardware", distinct(runs, 7)], ["system", distinct(runs, 8)], ["versions", distinct(runs, 9)],
      ["method", `${text(method)}, version ${version}, family ${text(family)}`], ["plugin sha256", text(plugin)],
      ["search", text(search)],
      ["data sha256", table.sha256], ["protocol hash", table.hash]]),
      make("h3", text(settings) ? "Settings that differ from the defaults" : "Settings: the defaults"));
    if (text(settings)) document.getElementById("d").append(make("pre", JSON.stringify(JSON.parse(text(settings)), null, 1)));
    dialog.showModal();
    dialog.scrollTop = 0;
  };
  document.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // outside of its content
    const button = event.target.closest(".board tbody button, .p");
    if (!button) return;
    const section = button.closest("section");
    const table = data.tables[section.dataset.t];
    const line = button.closest("tr");
    const column = line ? section.querySelector(".board").tHead.rows[0].cells[button.closest("td, th").cellIndex].textContent.trim() : "";
    show(table, table.rows[line ? line.dataset.r : button.dataset.row], column);
  });
  for (const button of document.querySelectorAll(".board tbody button")) button.setAttribute("aria-haspopup", "dialog");
}
