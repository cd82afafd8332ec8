document.querySelectorAll('table.sorts th').forEach(th=>th.firstChild.onclick=()=>{
const k=th.cellIndex,up=th.getAttribute('aria-sort')!=='ascending',body=th.closest('table').tBodies[0];
th.parentNode.querySelectorAll('th').forEach(t=>t.removeAttribute('aria-sort'));th.setAttribute('aria-sort',up?'ascending':'descending');
const key=r=>{const v=r.cells[k].dataset.v;return v===undefined?r.cells[k].textContent:v===''?NaN:v==='inf'?Infinity:+v};
const by=(a,b)=>Number.isNaN(a)||Number.isNaN(b)?Number.isNaN(a)-Number.isNaN(b):(typeof a==='string'?a.localeCompare(b):a<b?-1:a>b?1:0)*(up?1:-1);
[...body.rows].sort((a,b)=>by(key(a),key(b))).forEach(r=>body.append(r))})
